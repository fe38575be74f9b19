# The only assembly: the PV entry, the ELF notes that the domain builder reads, and the stubs that
# Xen enters. Intel syntax. ABI: xen/include/public/arch-x86/xen-x86_64.h and elfnote.h.

.macro NOTE type:req
        .balign 4
        .long 4, 2f - 1f, \type
        .asciz "Xen"
1:
.endm
.macro END_NOTE
2:
        .balign 4
.endm
.macro NOTE_STRING type:req, text:req
        NOTE \type
        .asciz "\text"
        END_NOTE
.endm
.macro NOTE_QUAD type:req, value:req
        NOTE \type
        .quad \value
        END_NOTE
.endm

        .section .note.Xen, "a", @note
        NOTE_QUAD 1, _start                     # XEN_ELFNOTE_ENTRY
        NOTE_QUAD 3, _image_start               # VIRT_BASE: pfn 0 is mapped where the image starts
        NOTE_QUAD 4, _image_start               # PADDR_OFFSET: p_paddr equals p_vaddr
        NOTE_STRING 5, "xen-3.0"                # XEN_VERSION
        NOTE_STRING 6, "platter"                # GUEST_OS
        NOTE_STRING 8, "generic"                # LOADER
        NOTE_STRING 9, "yes"                    # PAE_MODE

        .section .text.boot, "ax", @progbits
# Entered with rsi = virtual address of start_info, upcalls masked, on the builder's one-page stack.
        .globl _start
_start:
        cld
        rdtsc
        shl rdx, 32
        or rax, rdx
        mov rdi, rsi
        mov rsi, rax
        lea rsp, [rip + _stack_top]
        xor ebp, ebp
        call platter_start
        ud2

# The event upcall. It is only ever delivered in `hypercall::block`, and there is nothing to do: the
# loop scans pending ports itself. Xen has set the upcall mask on entry, and nothing here clears it, so
# that no second upcall can come. Frame: rcx, r11, rip, cs (RPL 0), rflags, rsp, ss. It goes back by a
# jump, as iretq is slow: selectors are those that Xen entered with, and rcx, r11 and the flags are
# lost in a hypercall.
        .globl xen_event_upcall
xen_event_upcall:
        mov rcx, [rsp + 16]
        mov rsp, [rsp + 40]
        jmp rcx

# Traps: build `traps::Frame` and do not come back. Xen's frame is rcx, r11, [error code], rip, …
trap_common:
        push rax
        push rbx
        push rcx
        push rdx
        push rsi
        push rdi
        push rbp
        push r8
        push r9
        push r10
        push r11
        push r12
        push r13
        push r14
        push r15
        mov rdi, rsp
        and rsp, -16
        call platter_trap
        ud2

.macro TRAP vector:req
trap_\vector:
        pop rcx
        pop r11
        push 0
        push \vector
        jmp trap_common
.endm
.macro TRAP_WITH_CODE vector:req
trap_\vector:
        pop rcx
        pop r11
        push \vector
        jmp trap_common
.endm
        TRAP 0
        TRAP 1
        TRAP 3
        TRAP 4
        TRAP 5
        TRAP 6
        TRAP 7
        TRAP_WITH_CODE 10
        TRAP_WITH_CODE 11
        TRAP_WITH_CODE 12
        TRAP_WITH_CODE 13
        TRAP_WITH_CODE 14
        TRAP 16
        TRAP_WITH_CODE 17
        TRAP 18
        TRAP 19

# A segment register could not be reloaded on return: four selectors lie on top of the frame.
        .globl xen_failsafe
xen_failsafe:
        add rsp, 32
        pop rcx
        pop r11
        push 0
        push 256
        jmp trap_common

# struct trap_info: vector, flags (DPL 3 for breakpoint and overflow, else 0; bit 2: mask events),
# code selector, handler; the table ends with a zero handler.
.macro TRAP_INFO vector:req, flags:req
        .byte \vector, \flags
        .short 0xe033
        .long 0
        .quad trap_\vector
.endm
        .section .rodata.traps, "a", @progbits
        .balign 8
        .globl xen_trap_table
xen_trap_table:
        TRAP_INFO 0, 4
        TRAP_INFO 1, 4
        TRAP_INFO 3, 7
        TRAP_INFO 4, 7
        TRAP_INFO 5, 4
        TRAP_INFO 6, 4
        TRAP_INFO 7, 4
        TRAP_INFO 10, 4
        TRAP_INFO 11, 4
        TRAP_INFO 12, 4
        TRAP_INFO 13, 4
        TRAP_INFO 14, 4
        TRAP_INFO 16, 4
        TRAP_INFO 17, 4
        TRAP_INFO 18, 4
        TRAP_INFO 19, 4
        .quad 0, 0
