// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The handlers of the two signals that an access makes: ours stand before
//! the program's, which get what is not an access to a device.
//!
//! A program's signal mask and alternate stack apply as ours do: a handler of
//! its own is called on the stack of ours and with nothing more blocked.

use std::ffi::{c_int, c_void};
use std::mem::size_of;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use crate::{c, emulate};

/// What the program has asked for.
struct Own {
    handler: AtomicUsize,
    flags: AtomicI32,
}

impl Own {
    const fn new() -> Own {
        Own { handler: AtomicUsize::new(c::SIG_DFL), flags: AtomicI32::new(0) }
    }

    fn of(signal: c_int) -> Option<&'static Own> {
        static SEGV: Own = Own::new();
        static ILL: Own = Own::new();
        match signal {
            c::SIGSEGV => Some(&SEGV),
            c::SIGILL => Some(&ILL),
            _ => None,
        }
    }
}

/// Taken back to the default when a handler is called.
const SA_RESETHAND: c_int = i32::MIN;
const SA_RESTART: c_int = 0x1000_0000;
const SIG_ERR: usize = usize::MAX;

/// The handlers are there before `main`.
// SAFETY: the section holds pointers to functions that take no arguments they
// look at, which is what the dynamic linker calls.
#[cfg_attr(not(test), unsafe(link_section = ".init_array"))]
#[used]
static INIT: extern "C" fn() = init;

extern "C" fn init() {
    if cfg!(test) {
        return;
    }
    for signal in [c::SIGSEGV, c::SIGILL] {
        let ours = c::SigAction {
            handler: fault as *const () as usize,
            mask: [0; 16],
            flags: c::SA_SIGINFO | c::SA_NODEFER | c::SA_ONSTACK,
            restorer: 0,
        };
        // SAFETY: `fault` has the type that SA_SIGINFO asks for.
        unsafe { c::__sigaction(signal, &raw const ours, std::ptr::null_mut()) };
    }
}

extern "C" fn fault(signal: c_int, info: *mut c_void, context: *mut c_void) {
    // SAFETY: errno is this thread's.
    let errno = unsafe { *c::__errno_location() };
    // SAFETY: the kernel gives a handler installed with SA_SIGINFO a context
    // that is its own until it returns.
    let done = emulate::step(unsafe { &mut *context.cast::<c::Context>() });
    // SAFETY: errno is this thread's.
    unsafe { *c::__errno_location() = errno };
    if !done {
        pass_on(signal, info, context);
    }
}

/// Not ours: it is the program's.
fn pass_on(signal: c_int, info: *mut c_void, context: *mut c_void) {
    let Some(own) = Own::of(signal) else { return };
    let (handler, flags) = (own.handler.load(Ordering::Acquire), own.flags.load(Ordering::Relaxed));
    if flags & SA_RESETHAND != 0 {
        own.handler.store(c::SIG_DFL, Ordering::Release);
    }
    match handler {
        // The same happens again, with the usual end; a fault cannot be ignored.
        c::SIG_DFL | c::SIG_IGN => {
            let usual = c::SigAction { handler: c::SIG_DFL, mask: [0; 16], flags: 0, restorer: 0 };
            // SAFETY: SIG_DFL is a disposition.
            unsafe { c::__sigaction(signal, &raw const usual, std::ptr::null_mut()) };
        }
        // SAFETY: the program has said that this is a handler of that type.
        _ if flags & c::SA_SIGINFO != 0 => unsafe {
            std::mem::transmute::<usize, extern "C" fn(c_int, *mut c_void, *mut c_void)>(handler)(
                signal, info, context,
            );
        },
        // SAFETY: the same.
        _ => unsafe { std::mem::transmute::<usize, extern "C" fn(c_int)>(handler)(signal) },
    }
}

/// Stands before libc's `sigaction`.
///
/// # Safety
/// As for libc's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn sigaction(signal: c_int, new: *const c::SigAction, old: *mut c::SigAction) -> c_int {
    let Some(own) = Own::of(signal) else {
        // SAFETY: what the caller asks of libc.
        return unsafe { c::__sigaction(signal, new, old) };
    };
    // SAFETY: the caller's pointers are valid or null.
    let (new, old) = unsafe { (new.as_ref().copied(), old.as_mut()) };
    if let Some(old) = old {
        let (handler, flags) = (own.handler.load(Ordering::Acquire), own.flags.load(Ordering::Relaxed));
        *old = c::SigAction { handler, mask: [0; 16], flags, restorer: 0 };
    }
    if let Some(new) = new {
        own.flags.store(new.flags, Ordering::Relaxed);
        own.handler.store(new.handler, Ordering::Release);
    }
    0
}

/// Stands before libc's `signal`.
///
/// # Safety
/// As for libc's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn signal(signal: c_int, handler: usize) -> usize {
    let new = c::SigAction { handler, mask: [0; 16], flags: SA_RESTART, restorer: 0 };
    let mut old = new;
    // SAFETY: both are valid.
    match unsafe { sigaction(signal, &raw const new, &raw mut old) } {
        0 => old.handler,
        _ => SIG_ERR,
    }
}

const _: () = assert!(size_of::<c::SigAction>() == 152);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_sees_the_handlers_that_it_has_set() {
        extern "C" fn handler(_: c_int) {}
        let mine = handler as *const () as usize;
        // SAFETY: a handler that does nothing; none is installed in a test.
        unsafe {
            assert_eq!(signal(c::SIGSEGV, mine), c::SIG_DFL);
            let mut old = c::SigAction { handler: 0, mask: [0; 16], flags: 0, restorer: 0 };
            assert_eq!(sigaction(c::SIGSEGV, std::ptr::null(), &raw mut old), 0);
            assert_eq!((old.handler, old.flags), (mine, SA_RESTART));
            assert_eq!(signal(c::SIGSEGV, c::SIG_DFL), mine);
            assert_eq!(signal(-1, mine), SIG_ERR);
        }
    }
}
