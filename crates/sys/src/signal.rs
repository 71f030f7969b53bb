// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ending as another program ended.
#![allow(unsafe_code)] // signal dispositions

/// Ends this program by `signal`, so that its parent sees what a program run
/// on its behalf died of. Returns if the signal does not end programs.
pub fn die_of(signal: i32) {
    // One core dump, the program's own, is enough.
    let no_core = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a valid limit.
    unsafe { libc::setrlimit64(libc::RLIMIT_CORE, &raw const no_core) };
    // SAFETY: SIG_DFL is a valid action for any signal number; others are refused.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    // SAFETY: a set on the stack, made empty before it is used.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
    }
    // SAFETY: sends a signal to this thread only.
    unsafe { libc::raise(signal) };
}
