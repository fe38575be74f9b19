//! Lets a simulated world act inside any access to shared memory: a hostile frontend that changes
//! a request between two reads of it, or an honest one that publishes just after we looked.

use core::cell::RefCell;
use core::ptr::NonNull;
use std::boxed::Box;
use std::thread_local;

/// Called before each access with the page's address and the offset in it.
pub type Hook = Box<dyn FnMut(NonNull<u8>, usize)>;

thread_local! {
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

/// Installs a hook for this thread, or removes it.
pub fn set(hook: Option<Hook>) {
    HOOK.with(|slot| *slot.borrow_mut() = hook);
}

/// Runs the hook. Accesses that the hook itself makes do not run it again.
#[cfg(debug_assertions)]
pub(super) fn touched(base: NonNull<u8>, offset: usize) {
    let Some(mut hook) = HOOK.with(|slot| slot.borrow_mut().take()) else { return };
    hook(base, offset);
    HOOK.with(|slot| {
        slot.borrow_mut().get_or_insert(hook);
    });
}
