// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Runs a program in front of the tests' pretend kernel:
//! `runner ISOLATION [--sysfs-writable] PROGRAM [ARG...]`. Says on standard
//! error what the kernel saw, and ends as the program did.
#![allow(clippy::unwrap_used)] // a test in an executable of its own

#[path = "../tests/common/mod.rs"]
mod common;

fn main() {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let isolation = args.remove(0).parse().unwrap();
    let sysfs_writable = args.first().is_some_and(|arg| arg == "--sysfs-writable");
    if sysfs_writable {
        args.remove(0);
    }
    if std::env::var_os("VFUSE_TEST_TRACE").is_some() {
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(std::io::stderr).init();
    }
    let program = args.remove(0);
    let mut options = intercept::Options::new(program, args);
    options.isolation = isolation;
    options.sysfs_writable = sysfs_writable;
    options.whole_process = true;
    let kernel = common::Fake::new();
    let log = kernel.log.clone();
    let result = intercept::run(options, Box::new(kernel));
    let log = log.lock().unwrap();
    let mut processes = log.processes.clone();
    processes.sort();
    processes.dedup();
    eprintln!(
        "kernel: opened={} released={} maps={} unmaps={} stores={} spaces={}",
        log.opened,
        log.released,
        log.maps,
        log.unmaps,
        log.stores.len(),
        processes.len()
    );
    match result {
        Ok(status) => intercept::exit_like(status),
        Err(error) => {
            eprintln!("runner: {error}");
            std::process::exit(error.exit_code());
        }
    }
}
