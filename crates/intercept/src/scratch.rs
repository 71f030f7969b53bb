// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A private directory that does not outlive its use.
//!
//! Paths mode keeps the fake tree in one. It is removed at the end, or by the
//! janitor if this process is killed. One that is left all the same (both were
//! killed) is removed by the next that starts, which sees by the lock on it
//! that its owner is gone.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::janitor::Janitor;

const PREFIX: &str = "vfuse-";

/// A directory that this process owns.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    /// Holds the lock that says that the owner lives.
    lock: OwnedFd,
    /// Removes it if this process is killed.
    _janitor: Option<Janitor>,
}

impl Scratch {
    /// A fresh directory, mode 0700, in memory if there is a place for it
    /// (`$XDG_RUNTIME_DIR`, `/dev/shm`), else in the directory for temporary
    /// files. Removes what dead owners left.
    pub(crate) fn new(purpose: &str) -> io::Result<Scratch> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let parents = [runtime, Some("/dev/shm".into()), Some(std::env::temp_dir())];
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for parent in parents.into_iter().flatten() {
            sweep(&parent);
            match Scratch::create_in(&parent, purpose) {
                Ok(scratch) => return Ok(scratch),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn create_in(parent: &Path, purpose: &str) -> io::Result<Scratch> {
        let mut random = [0u8; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let path = parent.join(format!("{PREFIX}{purpose}-{:016x}", u64::from_ne_bytes(random)));
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        // Between creation and lock a sweep of another process may take it: then this open fails.
        let lock = open_dir(&path)?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        let janitor = janitor(parent, &path, &lock);
        Ok(Scratch { path, lock, _janitor: janitor })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory.
    pub(crate) fn dir(&self) -> &OwnedFd {
        &self.lock
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            tracing::warn!(target: "vfuse::run", path = %self.path.display(), %error, "cannot remove the scratch directory");
        }
    }
}

fn janitor(parent: &Path, path: &Path, dir: &OwnedFd) -> Option<Janitor> {
    let name = CString::new(path.file_name()?.as_bytes()).ok()?;
    let started = open_dir(parent).and_then(|parent| {
        let stat = rustix::fs::fstat(dir)?;
        Ok(Janitor::start(&parent, name, &stat)?)
    });
    started
        .inspect_err(|error| {
            let path = path.display();
            tracing::warn!(target: "vfuse::run", %path, %error, "if this process is killed the directory stays");
        })
        .ok()
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

/// Removes a tree whose directories may be read-only.
fn remove(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fn open_up(dir: &Path) -> io::Result<()> {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open_up(&entry.path())?;
            }
        }
        Ok(())
    }
    open_up(path)?;
    std::fs::remove_dir_all(path)
}

/// Whether a name is one that [`Scratch::create_in`] gives: nothing else may be
/// removed.
fn is_name(name: &str) -> bool {
    let random = name.strip_prefix(PREFIX).and_then(|rest| rest.rsplit_once('-'));
    random.is_some_and(|(purpose, random)| {
        purpose.bytes().all(|byte| byte.is_ascii_lowercase())
            && random.len() == 16
            && random.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// Removes directories of ours in `parent` whose owners are gone.
fn sweep(parent: &Path) {
    let Ok(entries) = std::fs::read_dir(parent) else { return };
    let me = rustix::process::geteuid().as_raw();
    for entry in entries.flatten() {
        if !is_name(&entry.file_name().to_string_lossy()) {
            continue;
        }
        let path = entry.path();
        // A fresh one may not be locked yet.
        let old = |meta: &std::fs::Metadata| {
            meta.is_dir()
                && meta.uid() == me
                && meta.modified().ok().and_then(|at| at.elapsed().ok()).is_some_and(|age| age.as_secs() >= 2)
        };
        if !std::fs::symlink_metadata(&path).is_ok_and(|meta| old(&meta)) {
            continue;
        }
        let Ok(dir) = open_dir(&path) else { continue };
        if rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = remove(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_with_its_owner() {
        let scratch = Scratch::new("test").unwrap();
        let path = scratch.path().to_owned();
        std::fs::create_dir(path.join("sub")).unwrap();
        std::fs::write(path.join("sub/file"), "x").unwrap();
        drop(scratch);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_dead_owner_left_is_removed_and_what_lives_is_kept() {
        let living = Scratch::new("test").unwrap();
        let parent = living.path().parent().unwrap().to_owned();
        let dead = parent.join(format!("{PREFIX}dead-{:016x}", std::process::id()));
        let other = parent.join(format!("{PREFIX}bin-{}", std::process::id()));
        std::fs::create_dir(&dead).unwrap();
        std::fs::create_dir(&other).unwrap();
        let long_ago = rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: long_ago, last_modification: long_ago };
        for path in [&dead, &other, living.path()] {
            rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::empty()).unwrap();
        }
        sweep(&parent);
        assert!(!dead.exists());
        assert!(living.path().exists());
        std::fs::remove_dir(other).unwrap();
    }
}
