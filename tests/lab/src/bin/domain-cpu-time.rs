//! Runs in dom0: prints a domain's CPU time in nanoseconds, which `xl` only shows in tenths of a second.
//!
//! `domain-cpu-time DOMID` asks the hypervisor by XEN_DOMCTL_getdomaininfo (Xen 4.17 `public/domctl.h`) through
//! Linux's privcmd device (`include/uapi/xen/privcmd.h`). `domain-cpu-time DOMID each-line` does so for each line that it
//! reads, at once: for what xenstore-watch says.
#![expect(unsafe_code, reason = "a hypercall from user space is an ioctl, for which std has no safe call")]

use std::ffi::{c_int, c_ulong};
use std::fs::OpenOptions;
use std::io::{Error, Result, stdin};
use std::os::fd::AsRawFd;

/// `_IOC(_IOC_NONE, 'P', 0, sizeof(struct privcmd_hypercall))`.
const IOCTL_PRIVCMD_HYPERCALL: c_ulong = 0x0030_5000;
const HYPERVISOR_DOMCTL: u64 = 36;
const DOMCTL_GETDOMAININFO: u32 = 5;
const DOMCTL_INTERFACE_VERSION: u32 = 0x15;

#[repr(C)]
struct Hypercall {
    op: u64,
    arguments: [u64; 5],
}

/// `struct xen_domctl` with the start of its `xen_domctl_getdomaininfo`; the union has 128 bytes.
#[repr(C)]
struct Domctl {
    command: u32,
    interface_version: u32,
    domain: u16,
    _pad: [u16; 3],
    info_domain: u16,
    _pad_info: u16,
    flags: u32,
    pages: [u64; 6],
    cpu_time: u64,
    _rest: [u64; 8],
}

unsafe extern "C" {
    fn ioctl(fd: c_int, request: c_ulong, argument: *mut Hypercall) -> c_int;
}

fn cpu_time(domain: u16) -> Result<u64> {
    let privcmd = OpenOptions::new().read(true).write(true).open("/proc/xen/privcmd")?;
    let mut domctl = Domctl {
        command: DOMCTL_GETDOMAININFO,
        interface_version: DOMCTL_INTERFACE_VERSION,
        domain,
        _pad: [0; 3],
        info_domain: 0,
        _pad_info: 0,
        flags: 0,
        pages: [0; 6],
        cpu_time: 0,
        _rest: [0; 8],
    };
    let domctl_address = &raw mut domctl as u64;
    let mut call = Hypercall { op: HYPERVISOR_DOMCTL, arguments: [domctl_address, 0, 0, 0, 0] };
    // SAFETY: the kernel reads one `Hypercall` and Xen writes one `Domctl`; both live on this stack until it returns.
    let result = unsafe { ioctl(privcmd.as_raw_fd(), IOCTL_PRIVCMD_HYPERCALL, &raw mut call) };
    if result != 0 {
        return Err(Error::last_os_error());
    }
    // Xen answers with the next existing domain when this one is gone.
    if domctl.info_domain != domain {
        return Err(Error::other(format!("no domain {domain}")));
    }
    Ok(domctl.cpu_time)
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let usage = || Error::other("usage: DOMID [each-line]");
    let [domain, rest @ ..] = arguments.as_slice() else { return Err(usage()) };
    let domain = domain.parse().map_err(|_| usage())?;
    match rest {
        [] => println!("{}", cpu_time(domain)?),
        ["each-line"] => {
            for line in stdin().lines() {
                line?;
                println!("{}", cpu_time(domain)?);
            }
        }
        _ => return Err(usage()),
    }
    Ok(())
}
