// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A library that the program is started with.
//!
//! It lies in a private directory that goes with the run, where users that
//! the program becomes can read it, too: a descriptor of a memfd would be
//! closed by programs that close what they do not know.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::scratch::Scratch;
use crate::{Error, Options};

/// The variable that the dynamic linker looks at.
const VARIABLE: &str = "LD_PRELOAD";
const PT_INTERP: u32 = 3;

/// The library, as a file.
#[derive(Debug)]
pub(crate) struct Preload {
    _directory: Scratch,
}

impl Preload {
    /// Puts the library down and into the program's environment, before
    /// others that are there.
    pub(crate) fn new(options: &mut Options) -> Result<Option<Preload>, Error> {
        let Some(library) = options.preload else { return Ok(None) };
        let os = |source| Error::Os { what: "putting down the library to preload", source };
        let directory = Scratch::new("preload").map_err(os)?;
        let path = directory.path().join("libvfuse.so");
        std::fs::write(&path, library).map_err(os)?;
        let open = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
        open(&path, 0o644).and_then(|()| open(directory.path(), 0o711)).map_err(os)?;
        let set = options.env.iter().rev().find(|(name, _)| name == VARIABLE).map(|(_, value)| value.clone());
        let mut value = OsString::from(&path);
        if let Some(others) = set.or_else(|| std::env::var_os(VARIABLE)).filter(|others| !others.is_empty()) {
            value.push(":");
            value.push(others);
        }
        options.env.push((VARIABLE.into(), value));
        Ok(Some(Preload { _directory: directory }))
    }
}

/// Whether a file is a program that no dynamic linker loads. `false` if that
/// cannot be told: scripts, formats of others, what cannot be read.
pub(crate) fn is_static(path: &OsStr) -> bool {
    File::open(Path::new(path)).is_ok_and(|file| elf_is_static(file).unwrap_or(false))
}

/// 64-bit ELF of this machine's byte order (ELF-64 object file format, 3 and 6).
pub(crate) fn elf_is_static(mut file: impl Read + Seek) -> io::Result<bool> {
    let mut head = [0; 64];
    file.read_exact(&mut head)?;
    if !head.starts_with(b"\x7fELF\x02\x01") || !cfg!(target_endian = "little") {
        return Ok(false);
    }
    let [a, b, c, d, e, f, g, h] = [32, 33, 34, 35, 36, 37, 38, 39].map(|at: usize| head[at]);
    let (start, size, count) = (
        u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        u64::from(u16::from_le_bytes([head[54], head[55]])),
        u64::from(u16::from_le_bytes([head[56], head[57]])),
    );
    for number in 0..count {
        let mut kind = [0; 4];
        file.seek(SeekFrom::Start(start.saturating_add(number * size)))?;
        file.read_exact(&mut kind)?;
        if u32::from_le_bytes(kind) == PT_INTERP {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The first of the candidates that there is.
pub(crate) fn check(candidates: &[std::ffi::CString], name: &str) -> Result<(), Error> {
    let mut paths = candidates.iter().map(|path| OsStr::from_bytes(path.as_bytes()));
    match paths.find(|path| Path::new(path).is_file()) {
        Some(path) if is_static(path) => Err(Error::Static { program: name.to_owned() }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF header and one program header of this kind.
    fn elf(kind: u32) -> Vec<u8> {
        let mut file = vec![0; 64 + 56];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[32] = 64;
        (file[54], file[56]) = (56, 1);
        file[64..68].copy_from_slice(&kind.to_le_bytes());
        file
    }

    #[test]
    fn a_program_without_an_interpreter_is_static() {
        let of = |bytes: &[u8]| elf_is_static(io::Cursor::new(bytes)).unwrap_or(false);
        assert!(of(&elf(1)) && !of(&elf(PT_INTERP)));
        assert!(!of(b"#!/bin/sh\n") && !of(b"") && !of(&elf(1)[..66]));
        assert!(!is_static(std::env::current_exe().unwrap().as_os_str()));
    }

    #[test]
    fn the_library_comes_first_and_goes_with_the_run() {
        let mut options = Options::new("true", [""; 0]);
        assert!(Preload::new(&mut options).unwrap().is_none() && options.env.is_empty());
        options.preload = Some(b"library");
        options.env.push((VARIABLE.into(), "/other.so".into()));
        let preload = Preload::new(&mut options).unwrap();
        let (name, value) = options.env.pop().unwrap();
        let value = value.into_string().unwrap();
        let path = value.strip_suffix(":/other.so").unwrap();
        assert_eq!((name, std::fs::read(path).unwrap()), (VARIABLE.into(), b"library".to_vec()));
        drop(preload);
        assert!(!Path::new(path).exists());
    }
}
