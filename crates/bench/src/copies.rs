// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! DMA of 1 MiB from a program's memory: translated, found, copied, beside the
//! bare copy.
#![allow(unsafe_code)] // the bare copies

use std::hint::black_box;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};
use iommu::{Access, AddressSpace, Mapping, Prot, Requester};
use vm_memory::VolatileSlice;

use crate::client::{LOOKED_AT, MEMORY, PRIVATE, SHARED};
use crate::process::{Client, own};
use crate::table::{Figures, Goal, Table};
use crate::timing::{each, in_turn};

const ROUNDS: usize = 101;
const CALLS: u64 = 20;
const LEN: usize = 1 << 20;
/// The copies go through so much memory, which both sides find in the same cache.
const WINDOW: usize = 4 << 20;

/// Rows of copies.
pub(crate) fn rows(table: &mut Table) {
    table.row("1 MiB DMA, shared backing / memcpy", Goal::AtLeast(0.95, ""), || {
        let from = vec![1u8; WINDOW];
        let mut to = vec![0u8; LEN];
        compare(SHARED, move |_, call| {
            let part = from.get(place(call)..).and_then(|rest| rest.get(..LEN)).context("window")?;
            black_box(&mut to).copy_from_slice(part);
            Ok(())
        })
    });
    table.row("1 MiB DMA, private memory / process_vm_readv", Goal::AtLeast(0.95, ""), || {
        let mut to = vec![0u8; LEN];
        compare(PRIVATE, move |(pid, start), call| {
            let local = libc::iovec { iov_base: to.as_mut_ptr().cast(), iov_len: LEN };
            let remote = libc::iovec { iov_base: (start as usize + place(call)) as *mut libc::c_void, iov_len: LEN };
            // SAFETY: `to` has as many bytes; the other address is another program's.
            let moved = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
            ensure!(moved == LEN as isize, "process_vm_readv: {}", std::io::Error::last_os_error());
            Ok(())
        })
    });
}

fn place(call: u64) -> usize {
    (call as usize * LEN) % WINDOW
}

/// DMA from memory of this kind, beside `bare`, which is told the program and
/// the address. The figure is how fast ours is for the bare one's speed.
fn compare(kind: &str, mut bare: impl FnMut((i32, u64), u64) -> Result<()>) -> Result<Figures> {
    const IOVA: u64 = 1 << 32;
    let mut program = Client::start(own(MEMORY)?)?;
    let at = program.ask(kind, 1)? as u64;
    let pid = i32::try_from(program.pid())?;
    let process = sys::Process::open(pid).map_err(|errno| anyhow!("the program's memory: {errno:?}"))?;
    let pinned = sys::Pinner::new()
        .pin(&process, at, LOOKED_AT as u64, true)
        .map_err(|errno| anyhow!("cannot pin memory: {errno:?}"))?;
    ensure!(
        pinned.memory.slice(pinned.offset, LEN).is_some() == (kind == SHARED),
        "{kind} memory is reached in another way than it should"
    );
    let space = AddressSpace::new();
    let (last, prot) = (IOVA + (LOOKED_AT as u64 - 1), Prot::READ | Prot::WRITE);
    space.map(Mapping { first: IOVA, last, prot, memory: pinned.memory, offset: pinned.offset, tag: 0 })?;
    let requester = Requester::new();
    requester.attach(Some(Arc::clone(&space).into()));
    requester.set_bus_master(true);

    let mut to = vec![0u8; LEN];
    let mut ours = |call: u64| {
        let slice = VolatileSlice::from(to.as_mut_slice());
        requester.session().copy_slice(IOVA + place(call) as u64, &slice, Access::Read)?;
        Ok(())
    };
    // Both sides have their pages then.
    each(WINDOW as u64 / LEN as u64, &mut ours)?;
    each(WINDOW as u64 / LEN as u64, |call| bare((pid, at), call))?;
    let (ours, bare) = in_turn(ROUNDS, || each(CALLS, &mut ours), || each(CALLS, |call| bare((pid, at), call)))?;
    let rate = |ns: f64| format!("{:.1} GB/s", LEN as f64 / ns);
    Ok(Figures { ours: rate(ours), other: rate(bare), figure: bare / ours })
}
