// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control queue (5.1.6.5).

use device::virtio::VirtioIo;
use iommu::Session;

use super::Net;
use super::filter::MAX_ADDRESSES;
use crate::virtio::parts;
use crate::virtio::queue::{Look, Served};
use crate::virtio::ring::{Batch, Chain};
use crate::virtio::spec::net::{control, feature};

/// Commands of one turn: a driver waits for each.
const BURST: usize = 8;
/// Longest data of a command that is looked at: two tables of addresses, of
/// which the counts alone tell that they are too long.
const MAX_DATA: usize = 64 << 10;

impl Net {
    /// Commands, each answered with a byte. A buffer without a command or
    /// without a place for the answer returns unanswered.
    pub(super) fn control(&mut self, io: &mut VirtioIo<'_>, index: u16) -> Served {
        let Some(dma) = io.dma.get(self.group(index)) else { return Err(None) };
        let Some(queue) = self.queues.get_mut(usize::from(index)) else { return Err(None) };
        let mut session = dma.session();
        let look = queue.look(&mut session, &mut self.batch, BURST);
        if !matches!(look, Look::Some) {
            drop(session);
            return queue.none(&look, dma, io);
        }
        let batch = std::mem::take(&mut self.batch);
        let mut written = Vec::with_capacity(BURST);
        for chain in batch.chains() {
            let answer = match read(&mut session, &batch, chain) {
                Some((command, data)) if chain.write_len > 0 => {
                    let done = self.command(command, &data);
                    tracing::debug!(target: "vfuse::virtio", class = command[0], command = command[1], done, "control");
                    if done { control::OK } else { control::ERR }
                }
                _ => {
                    written.push(0);
                    continue;
                }
            };
            let wrote = parts::write(&mut session, batch.writable(chain), 0, &[answer]);
            written.push(u32::from(wrote.is_ok()));
        }
        let served = match self.queues.get_mut(usize::from(index)) {
            Some(queue) => queue.complete(&mut session, &batch, &written, io, index),
            None => Err(None),
        };
        self.batch = batch;
        served
    }

    /// Whether it was done.
    fn command(&mut self, command: [u8; 2], data: &[u8]) -> bool {
        let has = |bits: u64| self.queues.has(bits);
        match command {
            [0, number] if has(if number < 2 { feature::CTRL_RX } else { feature::CTRL_RX_EXTRA }) => {
                data.first().is_some_and(|on| self.filter.set(command, *on != 0))
            }
            control::MAC_TABLE_SET if has(feature::CTRL_RX) => self.set_tables(data),
            control::MAC_ADDR_SET if has(feature::CTRL_MAC_ADDR) => match <[u8; 6]>::try_from(data) {
                Ok(mac) => {
                    self.filter.set_mac(mac);
                    true
                }
                Err(_) => false,
            },
            control::VLAN_ADD | control::VLAN_DEL if has(feature::CTRL_VLAN) => match number(data) {
                Some(vlan) => self.filter.set_vlan(vlan, command == control::VLAN_ADD),
                None => false,
            },
            control::ANNOUNCE_ACK if has(feature::GUEST_ANNOUNCE) => {
                self.announce = false;
                true
            }
            control::MQ_VQ_PAIRS_SET if has(feature::MQ) => match number(data) {
                Some(pairs) if (1..=self.config.pairs).contains(&pairs) => {
                    self.pairs = pairs;
                    self.tell_port(true);
                    true
                }
                _ => false,
            },
            control::GUEST_OFFLOADS_SET if has(feature::CTRL_GUEST_OFFLOADS) => match <[u8; 8]>::try_from(data) {
                Ok(bits) => self.change_offloads(u64::from_le_bytes(bits)),
                Err(_) => false,
            },
            _ => false,
        }
    }

    /// Takes those of what was negotiated.
    fn change_offloads(&self, bits: u64) -> bool {
        let all =
            feature::GUEST_CSUM | feature::GUEST_TSO4 | feature::GUEST_TSO6 | feature::GUEST_ECN | feature::GUEST_UFO;
        let allowed = bits & !(self.queues.features() & all) == 0;
        if allowed {
            self.set_offloads(bits);
        }
        allowed
    }

    fn set_tables(&mut self, data: &[u8]) -> bool {
        let Some((unicast, rest)) = table(data) else { return false };
        let Some((multicast, _)) = table(rest) else { return false };
        self.filter.set_tables(unicast, multicast);
        true
    }
}

fn number(data: &[u8]) -> Option<u16> {
    Some(u16::from_le_bytes(data.try_into().ok()?))
}

type Addresses = Option<Vec<[u8; 6]>>;

/// A count and so many addresses, and what lies behind them. `None` instead of
/// addresses: too many.
fn table(data: &[u8]) -> Option<(Addresses, &[u8])> {
    let (count, rest) = data.split_first_chunk::<4>()?;
    let count = u32::from_le_bytes(*count) as usize;
    let (table, rest) = rest.split_at_checked(count.checked_mul(6)?)?;
    let addresses = table.chunks_exact(6).filter_map(|one| one.try_into().ok());
    Some(((count <= MAX_ADDRESSES).then(|| addresses.collect()), rest))
}

/// A command and its data.
fn read(session: &mut Session<'_>, batch: &Batch, chain: &Chain) -> Option<([u8; 2], Vec<u8>)> {
    let mut bytes = vec![0; usize::try_from(chain.read_len).ok()?.min(MAX_DATA)];
    let parts = batch.readable(chain);
    parts::read(session, parts, 0, &mut bytes).ok()?;
    let (command, data) = bytes.split_first_chunk::<2>()?;
    Some((*command, data.to_vec()))
}
