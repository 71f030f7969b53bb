// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Linux error numbers.

use std::fmt;

/// A Linux error number, always positive.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

macro_rules! errnos {
    ($($name:ident)*) => {
        impl Errno {
            $(#[doc = concat!("`", stringify!($name), "`")]
            pub const $name: Errno = Errno(libc::$name);)*

            /// Symbolic name, if it is one that the project uses.
            #[must_use]
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $(libc::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    EPERM ENOENT EINTR EIO ENXIO E2BIG EBADF EAGAIN
    ENOMEM EACCES EFAULT EBUSY EEXIST EXDEV ENODEV ENOTDIR
    EISDIR EINVAL ENFILE EMFILE ENOTTY EFBIG ENOSPC ESPIPE
    EROFS ERANGE EDEADLK ENOSYS ENOBUFS EBADFD EOVERFLOW EMSGSIZE EPROTONOSUPPORT EOPNOTSUPP
    EADDRINUSE ETIMEDOUT EDQUOT ECANCELED EBADE ENOMSG
}

impl Errno {
    /// A signal has ended a wait: the program's handler decides between
    /// `EINTR` and making the call again. Linux keeps it from programs.
    pub const ERESTARTSYS: Errno = Errno(512);

    /// The error for a raw number; a number that is not positive becomes `EIO`.
    #[must_use]
    pub const fn from_raw(raw: i32) -> Errno {
        if raw > 0 { Errno(raw) } else { Errno(libc::EIO) }
    }

    /// The positive number.
    #[must_use]
    pub const fn raw(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Errno {}
