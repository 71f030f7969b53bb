// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The program to run, ready for `execve` in a process that may not allocate.

use std::ffi::{CString, OsStr, OsString, c_char};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::{Error, Options};

/// Where `PATH` is not set (what `confstr(_CS_PATH)` says, and `/usr/local`).
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// A program with its arguments and environment.
#[derive(Debug)]
pub(crate) struct Program {
    /// As the user named it.
    pub(crate) name: String,
    /// Files to try in turn.
    pub(crate) candidates: Vec<CString>,
    args: Vec<CString>,
    env: Vec<CString>,
}

/// Null-terminated pointer arrays into a [`Program`].
#[derive(Debug)]
pub(crate) struct Pointers {
    /// For `execve` of the program itself.
    pub(crate) argv: Vec<*const c_char>,
    /// For `/bin/sh`: the file's name goes to index 1.
    pub(crate) shell_argv: Vec<*const c_char>,
    /// The environment.
    pub(crate) envp: Vec<*const c_char>,
}

impl Program {
    /// Looks for the program and prepares it.
    pub(crate) fn new(options: &Options) -> Result<Program, Error> {
        let name = options.program.to_string_lossy().into_owned();
        let c = |text: &OsStr| CString::new(text.as_bytes()).map_err(|_| Error::Nul { program: name.clone() });

        let candidates = if options.program.as_bytes().contains(&b'/') {
            vec![c(&options.program)?]
        } else if options.program.is_empty() {
            Vec::new()
        } else {
            let set = options.env.iter().rev().find(|(key, _)| key == "PATH").map(|(_, value)| value.clone());
            let path = set.or_else(|| std::env::var_os("PATH")).unwrap_or_else(|| DEFAULT_PATH.into());
            std::env::split_paths(&path)
                .map(|dir| if dir.as_os_str().is_empty() { Path::new(".").into() } else { dir })
                .map(|dir| c(dir.join(&options.program).as_os_str()))
                .collect::<Result<_, _>>()?
        };

        let mut args = vec![c(&options.program)?];
        for arg in &options.args {
            args.push(c(arg)?);
        }
        let changed = |key: &OsString| options.env.iter().any(|(other, _)| other == key);
        let mut env = Vec::new();
        for (key, value) in std::env::vars_os().filter(|(key, _)| !changed(key)).chain(options.env.iter().cloned()) {
            let mut pair = key;
            pair.push("=");
            pair.push(value);
            env.push(c(&pair)?);
        }
        Ok(Program { name, candidates, args, env })
    }

    /// Pointers into it; valid as long as it is not dropped.
    pub(crate) fn pointers(&self) -> Pointers {
        let end = std::iter::once(std::ptr::null());
        let args = self.args.iter().map(|arg| arg.as_ptr());
        Pointers {
            argv: args.clone().chain(end.clone()).collect(),
            shell_argv: [c"/bin/sh".as_ptr(), std::ptr::null()]
                .into_iter()
                .chain(args.skip(1))
                .chain(end.clone())
                .collect(),
            envp: self.env.iter().map(|pair| pair.as_ptr()).chain(end).collect(),
        }
    }

    /// The error for what `execve` said last.
    pub(crate) fn error(&self, errno: rustix::io::Errno) -> Error {
        let program = self.name.clone();
        let there = || self.candidates.iter().any(|path| Path::new(OsStr::from_bytes(path.as_bytes())).exists());
        match errno {
            // ENOENT of a file that is there is a missing interpreter.
            rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR if !there() => Error::NotFound { program },
            // A directory of PATH that may not be entered hides nothing.
            rustix::io::Errno::ACCESS if !program.contains('/') && !there() => Error::NotFound { program },
            errno => Error::NotExecutable { program, source: errno.into() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_for_in_path() {
        let mut options = Options::new("prog", ["a"]);
        options.env.push(("PATH".into(), "/x::/y".into()));
        let program = Program::new(&options).unwrap();
        assert_eq!(program.candidates, [c"/x/prog".into(), CString::from(c"./prog"), c"/y/prog".into()]);
        assert!(program.env.contains(&c"PATH=/x::/y".into()));
        assert_eq!(program.env.iter().filter(|pair| pair.as_bytes().starts_with(b"PATH=")).count(), 1);
        let pointers = program.pointers();
        assert_eq!((pointers.argv.len(), pointers.shell_argv.len()), (3, 4));
    }

    #[test]
    fn errors_are_those_of_a_shell() {
        let missing = Program::new(&Options::new("/nonexistent/prog", [""; 0])).unwrap();
        assert_eq!(missing.error(rustix::io::Errno::NOENT).exit_code(), 127);
        assert_eq!(missing.error(rustix::io::Errno::ACCESS).exit_code(), 126);
        let nowhere = Program::new(&Options::new("no-such-program-in-path", [""; 0])).unwrap();
        assert_eq!(nowhere.error(rustix::io::Errno::ACCESS).exit_code(), 127);
        let there = Program::new(&Options::new("/bin/sh", [""; 0])).unwrap();
        assert_eq!(there.error(rustix::io::Errno::NOENT).exit_code(), 126, "its interpreter is missing");
        assert!(matches!(Program::new(&Options::new("a", ["\0"])), Err(Error::Nul { .. })));
    }
}
