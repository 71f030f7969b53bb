// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A Linux guest in QEMU, without KVM: it runs one script and powers off.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::{Outcome, Place, build_file, need_program, run_child};

/// What the guest's kernel is told: speak on the serial line, little of it, end
/// rather than hang, and do not judge the timer on a machine that is busy.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet panic=-1 no_timer_check";

/// A guest, not yet started.
#[derive(Debug)]
pub struct Guest {
    arguments: Vec<OsString>,
}

impl Guest {
    /// A guest whose kernel QEMU loads and which runs this shell script.
    #[must_use]
    pub fn new(place: &Place, script: &str) -> Guest {
        let mut guest = Guest::from_disk();
        let kernel = place.program(&build_file("guest/vmlinuz"));
        let initramfs = place.write("initramfs", &initramfs(script));
        for (option, value) in [("-kernel", kernel.as_os_str()), ("-initrd", initramfs.as_os_str())] {
            guest = guest.with([OsStr::new(option), value]);
        }
        guest.with(["-append", KERNEL_ARGUMENTS])
    }

    /// The same without a serial line, for a [`Machine`](crate::Machine).
    #[must_use]
    pub fn quiet(place: &Place, script: &str) -> Guest {
        let mut guest = Guest::new(place, script);
        if let Some(at) = guest.arguments.iter().position(|argument| argument == "-serial") {
            guest.arguments.drain(at..at + 2);
        }
        guest
    }

    /// When the guest reboots, it does; without this QEMU ends.
    #[must_use]
    pub fn reboots(mut self) -> Guest {
        self.arguments.retain(|argument| argument != "-no-reboot");
        self
    }

    /// A guest that boots from a disk of its own.
    #[must_use]
    pub fn from_disk() -> Guest {
        let qemu = need_program("qemu-system-x86_64");
        Guest { arguments: vec![qemu.into()] }.with(["-accel", "tcg", "-cpu", "max", "-M", "q35", "-m", "512"]).with([
            "-nodefaults",
            "-nographic",
            "-serial",
            "stdio",
            "-no-reboot",
        ])
    }

    /// Adds QEMU options.
    #[must_use]
    pub fn with<S: AsRef<OsStr>>(mut self, options: impl IntoIterator<Item = S>) -> Guest {
        self.arguments.extend(options.into_iter().map(|option| option.as_ref().to_owned()));
        self
    }

    /// The program and its arguments.
    #[must_use]
    pub fn program(&self) -> &[OsString] {
        &self.arguments
    }
}

/// What a guest's script printed.
#[derive(Debug)]
pub struct GuestReport {
    /// Its lines, without the serial line's carriage returns.
    pub lines: Vec<String>,
}

impl GuestReport {
    /// Reads what the machine's serial line said.
    ///
    /// # Panics
    /// If the script has not run to its end with status 0.
    #[track_caller]
    #[must_use]
    pub fn of(outcome: &Outcome) -> GuestReport {
        outcome.succeeded();
        let text = outcome.text.replace('\r', "");
        let inside = text.split_once("guest: begin\n").and_then(|(_, rest)| rest.split_once("guest: end, status "));
        let Some((inside, after)) = inside else {
            panic!("the guest did not run its script to the end:\n{text}");
        };
        assert!(after.starts_with("0\n"), "the guest's script failed:\n{text}");
        GuestReport { lines: inside.lines().map(str::to_owned).collect() }
    }

    /// What follows `name=` on a line of its own.
    ///
    /// # Panics
    /// If there is no such line.
    #[track_caller]
    #[must_use]
    pub fn value(&self, name: &str) -> &str {
        self.lines
            .iter()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .unwrap_or_else(|| panic!("the guest said no {name}:\n{}", self.lines.join("\n")))
    }
}

/// A disk image with known content.
#[derive(Debug)]
pub struct TestDisk {
    /// Where it is.
    pub path: PathBuf,
}

impl TestDisk {
    /// An image in which every block differs from every other.
    ///
    /// # Panics
    /// If there is no room for it.
    #[must_use]
    pub fn patterned(place: &Place, name: &str, bytes: usize) -> TestDisk {
        // A multiplicative sequence: no two 8-byte words of an image are equal.
        let words = (1..=bytes as u64 / 8).flat_map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        TestDisk { path: place.write(name, &words.collect::<Vec<u8>>()) }
    }

    /// An image from which the machine's firmware boots the guest: a FAT file
    /// system with a boot loader, the kernel and this script.
    ///
    /// # Panics
    /// If the tools that make it are missing or fail.
    #[must_use]
    pub fn bootable(place: &Place, name: &str, script: &str) -> TestDisk {
        const MEGABYTES: u64 = 64;
        let path = place.write(name, &[]);
        File::options().write(true).open(&path).and_then(|f| f.set_len(MEGABYTES << 20)).expect("room for an image");

        let config = format!(
            "SERIAL 0 115200\nDEFAULT linux\nLABEL linux\n KERNEL vmlinuz\n INITRD initrd\n APPEND {KERNEL_ARGUMENTS}\n"
        );
        let config = place.write("syslinux.cfg", config.as_bytes());
        let initramfs = place.write("initrd", &initramfs(script));
        let kernel = build_file("guest/vmlinuz");
        tool("mkfs.vfat", [OsStr::new("-F"), OsStr::new("16"), path.as_os_str()]);
        for file in [&kernel, &initramfs, &config] {
            let target = format!("::/{}", file.file_name().unwrap_or_default().to_string_lossy());
            tool("mcopy", [OsStr::new("-i"), path.as_os_str(), file.as_os_str(), OsStr::new(&target)]);
        }
        tool("syslinux", [OsStr::new("--install"), path.as_os_str()]);
        TestDisk { path }
    }

    /// The checksum that `sha256sum` prints.
    ///
    /// # Panics
    /// If the file cannot be read.
    #[must_use]
    pub fn sha256(&self) -> String {
        sha256(&self.path)
    }
}

fn sha256(path: &Path) -> String {
    let outcome = tool("sha256sum", [path.as_os_str()]);
    outcome.text.split_whitespace().next().unwrap_or_default().to_owned()
}

/// Runs a program of the machine, a minute at most.
///
/// # Panics
/// If it is not there or fails.
#[track_caller]
pub fn tool<S: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = S>) -> Outcome {
    let mut command = Command::new(need_program(name));
    command.args(arguments);
    let outcome = run_child(command, Duration::from_secs(60));
    outcome.succeeded();
    outcome
}

/// The guest's initramfs with the script as a second archive behind it.
fn initramfs(script: &str) -> Vec<u8> {
    let base = build_file("guest/initramfs.gz");
    let mut bytes = std::fs::read(&base).unwrap_or_else(|e| panic!("cannot read {}: {e}", base.display()));
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(cpio_entry("test", script.as_bytes()));
    bytes.extend(cpio_entry("TRAILER!!!", &[]));
    bytes
}

/// One regular file of a cpio archive in the "newc" format.
fn cpio_entry(name: &str, content: &[u8]) -> Vec<u8> {
    const REGULAR: u32 = 0o100_755;
    let fields = [1, REGULAR, 0, 0, 1, 0, content.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
    let mut entry = b"070701".to_vec();
    entry.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
    entry.extend(name.as_bytes());
    entry.push(0);
    entry.resize(entry.len().next_multiple_of(4), 0);
    entry.extend(content);
    entry.resize(entry.len().next_multiple_of(4), 0);
    entry
}
