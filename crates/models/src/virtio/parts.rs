// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The parts of a buffer as one run of bytes: drivers may cut it anywhere
//! (2.7.4).

use iommu::{DmaFault, Session};

use super::ring::Part;

/// What lies behind the first `skip` bytes, up to `len` bytes of it.
#[inline]
pub(super) fn slice(parts: &[Part], skip: u64, len: u64) -> impl Iterator<Item = Part> + '_ {
    let (mut skip, mut left) = (skip, len);
    parts.iter().filter_map(move |part| {
        let gone = skip.min(u64::from(part.len));
        skip -= gone;
        let here = (u64::from(part.len) - gone).min(left);
        left -= here;
        // At most the part's own length.
        (here > 0).then_some(Part { iova: part.iova.wrapping_add(gone), len: here as u32 })
    })
}

/// Copies from the parts, behind the first `skip` bytes; how many there were.
pub(super) fn read(session: &mut Session<'_>, parts: &[Part], skip: u64, to: &mut [u8]) -> Result<usize, DmaFault> {
    let mut done = 0;
    for part in slice(parts, skip, to.len() as u64) {
        let end = done + part.len as usize;
        session.read(part.iova, to.get_mut(done..end).unwrap_or_default())?;
        done = end;
    }
    Ok(done)
}

/// Copies to the parts, behind the first `skip` bytes; how many there was room for.
pub(super) fn write(session: &mut Session<'_>, parts: &[Part], skip: u64, from: &[u8]) -> Result<usize, DmaFault> {
    let mut done = 0;
    for part in slice(parts, skip, from.len() as u64) {
        let end = done + part.len as usize;
        session.write(part.iova, from.get(done..end).unwrap_or_default())?;
        done = end;
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_cut_anywhere() {
        let parts = [Part { iova: 100, len: 3 }, Part { iova: 200, len: 0 }, Part { iova: 300, len: 5 }];
        let cut = |skip, len| slice(&parts, skip, len).map(|part| (part.iova, part.len)).collect::<Vec<_>>();
        assert_eq!(cut(0, 8), [(100, 3), (300, 5)]);
        assert_eq!(cut(1, 3), [(101, 2), (300, 1)]);
        assert_eq!(cut(3, u64::MAX), [(300, 5)]);
        assert_eq!(cut(7, 9), [(304, 1)]);
        assert_eq!(cut(8, 9), []);
        assert_eq!(cut(0, 0), []);
    }
}
