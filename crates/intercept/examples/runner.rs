// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Runs a program in front of the tests' pretend kernel:
//! `runner ISOLATION [--sysfs-writable] [--process-figures] PROGRAM [ARG...]`. Says on standard
//! error what the kernel saw, and ends as the program did.
#![allow(clippy::unwrap_used)] // a test in an executable of its own

#[path = "../tests/common/mod.rs"]
mod common;

/// Denies what a container without privileges is denied: namespaces, mounts,
/// and descriptors of other processes.
#[allow(unsafe_code)]
fn deny() {
    let insn = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let denied = [libc::SYS_unshare, libc::SYS_mount, libc::SYS_fsopen, libc::SYS_pidfd_getfd, libc::SYS_kcmp];
    let mut code = vec![insn(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0)];
    for nr in denied {
        code.push(insn(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, nr as u32));
        code.push(insn(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32));
    }
    code.push(insn(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW));
    let prog = libc::sock_fprog { len: code.len() as u16, filter: code.as_mut_ptr() };
    // SAFETY: `prog` describes `code`, which lives for the call.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const prog), 0);
    }
}

fn main() {
    if std::env::var_os("VFUSE_TEST_DENY").is_some() {
        deny();
    }
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let isolation = args.remove(0).parse().unwrap();
    let mut option = |name: &str| {
        let given = args.first().is_some_and(|arg| arg == name);
        if given {
            args.remove(0);
        }
        given
    };
    let (sysfs_writable, process_figures) = (option("--sysfs-writable"), option("--process-figures"));
    if std::env::var_os("VFUSE_TEST_TRACE").is_some() {
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(std::io::stderr).init();
    }
    let program = args.remove(0);
    let mut options = intercept::Options::new(program, args);
    options.isolation = isolation;
    options.sysfs_writable = sysfs_writable;
    options.process_figures = process_figures;
    options.whole_process = true;
    let kernel = common::Fake::new();
    let log = kernel.log.clone();
    let result = intercept::run(options, Box::new(kernel));
    let log = log.lock().unwrap();
    let mut processes = log.processes.clone();
    processes.sort();
    processes.dedup();
    eprintln!(
        "kernel: opened={} released={} maps={} unmaps={} stores={} spaces={} abandoned={} interrupted={}",
        log.opened,
        log.released,
        log.maps,
        log.unmaps,
        log.stores.len(),
        processes.len(),
        log.abandoned,
        log.interrupted
    );
    match result {
        Ok(status) => intercept::exit_like(status),
        Err(error) => {
            eprintln!("runner: {error}");
            std::process::exit(error.exit_code());
        }
    }
}
