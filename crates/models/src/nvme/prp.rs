// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Physical Region Pages (4.3): from a command's two entries to the memory
//! that it names.

use iommu::Session;

use super::error::Error;
use super::spec::{Command, Status};

/// A run of IOVAs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) iova: u64,
    pub(crate) len: usize,
}

/// Entries of a PRP list read at a time.
const CHUNK: usize = 512;

/// Appends pages to `runs`, joined where one follows the other. Devices move
/// long runs much faster than pages.
struct Runs<'a> {
    /// Where those of this command begin.
    first: usize,
    runs: &'a mut Vec<Run>,
    left: usize,
}

impl Runs<'_> {
    fn push(&mut self, iova: u64, page_left: usize) {
        let len = self.left.min(page_left);
        self.left -= len;
        let own = self.runs.len() > self.first;
        match self.runs.last_mut().filter(|_| own) {
            Some(last) if last.iova.checked_add(last.len as u64) == Some(iova) => last.len += len,
            _ => self.runs.push(Run { iova, len }),
        }
    }
}

/// The memory of `len` bytes that `command` points at, with pages of `page`
/// bytes (a power of two from 4096). `runs` is emptied first.
pub(crate) fn resolve(
    session: &mut Session<'_>,
    command: &Command,
    len: usize,
    page: u64,
    runs: &mut Vec<Run>,
) -> Result<(), Error> {
    runs.clear();
    append(session, command, len, page, runs)
}

/// [`resolve`], behind what is in `runs` already. After an error some of the
/// runs may have been added.
pub(crate) fn append(
    session: &mut Session<'_>,
    command: &Command,
    len: usize,
    page: u64,
    runs: &mut Vec<Run>,
) -> Result<(), Error> {
    let mut to = Runs { first: runs.len(), runs, left: len };
    let (first, second) = (command.prp1.get(), command.prp2.get());
    // An offset into the first page, on a dword.
    if first & 3 != 0 {
        return Err(Status::INVALID_PRP_OFFSET.into());
    }
    to.push(first, (page - first % page) as usize);
    if to.left == 0 {
        return Ok(()); // The second entry is reserved.
    }
    if to.left <= page as usize {
        if second % page != 0 {
            return Err(Status::INVALID_PRP_OFFSET.into());
        }
        to.push(second, page as usize);
        return Ok(());
    }
    list(session, second, page, &mut to)
}

/// Follows a PRP list; the last entry of a page points at the next list if
/// more than one page is left.
fn list(session: &mut Session<'_>, start: u64, page: u64, to: &mut Runs<'_>) -> Result<(), Error> {
    // The first list may start inside a page, on an entry.
    if start & 7 != 0 {
        return Err(Status::INVALID_PRP_OFFSET.into());
    }
    let mut buffer = [0u8; CHUNK * 8];
    let mut at = start;
    loop {
        let pages_left = to.left.div_ceil(page as usize);
        let in_page = ((page - at % page) / 8) as usize;
        let count = in_page.min(pages_left).min(CHUNK);
        let bytes = &mut buffer[..count * 8];
        session.read(at, bytes)?;
        for (i, entry) in bytes.chunks_exact(8).enumerate() {
            let entry = entry.try_into().map_or(0, u64::from_le_bytes);
            if entry % page != 0 {
                return Err(Status::INVALID_PRP_OFFSET.into());
            }
            if i + 1 == in_page && to.left > page as usize {
                at = entry;
                break;
            }
            to.push(entry, page as usize);
            at = at.wrapping_add(8);
        }
        if to.left == 0 {
            return Ok(());
        }
    }
}

/// Copies `data` to where `command` points.
pub(crate) fn send(
    session: &mut Session<'_>,
    command: &Command,
    data: &[u8],
    page: u64,
    runs: &mut Vec<Run>,
) -> Result<(), Error> {
    resolve(session, command, data.len(), page, runs)?;
    let mut rest = data;
    for run in runs.iter() {
        let (part, after) = rest.split_at_checked(run.len).unwrap_or((rest, &[]));
        session.write(run.iova, part)?;
        rest = after;
    }
    Ok(())
}

/// Fills `data` from where `command` points.
pub(crate) fn receive(
    session: &mut Session<'_>,
    command: &Command,
    data: &mut [u8],
    page: u64,
    runs: &mut Vec<Run>,
) -> Result<(), Error> {
    resolve(session, command, data.len(), page, runs)?;
    let mut rest = data;
    for run in runs.iter() {
        let Some((part, after)) = rest.split_at_mut_checked(run.len) else { break };
        session.read(run.iova, part)?;
        rest = after;
    }
    Ok(())
}
