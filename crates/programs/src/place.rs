// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where things are: the binary under test, what `make install` has prepared,
//! and a directory for the test's own files.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// The `vfuse` binary that Cargo has built beside this test.
///
/// # Panics
/// If it is not there.
#[must_use]
pub fn vfuse_binary() -> PathBuf {
    let test = env::current_exe().expect("a test has a path");
    let profile = test.ancestors().nth(2).expect("tests lie in target/PROFILE/deps");
    let binary = profile.join("vfuse");
    assert!(binary.is_file(), "{} is missing: run `make build`", binary.display());
    binary
}

/// An example program of this crate.
///
/// # Panics
/// If it is not there.
#[must_use]
pub fn example(name: &str) -> PathBuf {
    let program = vfuse_binary().with_file_name("examples").join(name);
    assert!(program.is_file(), "{} is missing: run `make build`", program.display());
    program
}

/// Cargo's target directory, that of this test.
pub(crate) fn target_directory() -> PathBuf {
    let test = env::current_exe().expect("a test has a path");
    test.ancestors().nth(3).expect("tests lie in target/PROFILE/deps").to_owned()
}

/// A file below `build/`.
///
/// # Panics
/// If it is not there.
#[must_use]
pub fn build_file(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path = root.join("build").join(name);
    assert!(path.exists(), "build/{name} is missing: run `make install`");
    path.canonicalize().expect("the path exists")
}

/// An installed program, by name.
///
/// # Panics
/// If no directory of `PATH`, nor those of the administrator, has it.
#[must_use]
pub fn need_program(name: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} is not installed: run `make install`"))
}

/// A directory that every user may enter and write, gone when dropped.
#[derive(Debug)]
pub struct Place {
    directory: tempfile::TempDir,
}

impl Default for Place {
    fn default() -> Place {
        Place::new()
    }
}

impl Place {
    /// A new, empty one.
    ///
    /// # Panics
    /// If the system's temporary directory cannot be written.
    #[must_use]
    pub fn new() -> Place {
        let directory = tempfile::Builder::new().prefix("programs-").tempdir().expect("/tmp can be written");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).expect("it is ours");
        Place { directory }
    }

    /// The path of a file in it.
    #[must_use]
    pub fn path(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.directory.path().join(name.as_ref())
    }

    /// Writes a file that every user may read and write.
    ///
    /// # Panics
    /// If there is no room for it.
    #[must_use]
    pub fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("it is ours");
        path
    }

    /// Makes a directory that every user may enter and write.
    ///
    /// # Panics
    /// If there is no room for it.
    #[must_use]
    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).unwrap_or_else(|e| panic!("cannot make {}: {e}", path.display()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("it is ours");
        path
    }

    /// A copy of a program that every user may run, wherever the original lies.
    ///
    /// # Panics
    /// If there is no room for it.
    #[must_use]
    pub fn program(&self, original: &Path) -> PathBuf {
        let copy = self.path(original.file_name().expect("a program has a name"));
        if !copy.exists() && fs::hard_link(original, &copy).is_err() {
            fs::copy(original, &copy).unwrap_or_else(|e| panic!("cannot copy {}: {e}", original.display()));
        }
        copy
    }
}
