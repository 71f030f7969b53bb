// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Random bytes from the kernel.

use rustix::rand::{GetRandomFlags, getrandom};

/// 16 random bytes. Waits for the kernel's pool only in the first seconds
/// after boot.
#[must_use]
pub fn bytes() -> [u8; 16] {
    let mut out = [0; 16];
    let mut done = 0;
    while done < out.len() {
        // Requests of up to 256 bytes fail only with EINTR while the pool fills.
        done += getrandom(&mut out[done..], GetRandomFlags::empty()).unwrap_or(0);
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn two_draws_differ() {
        assert_ne!(super::bytes(), super::bytes());
    }
}
