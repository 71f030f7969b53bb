// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An address space and DMA through it, against a reference model: a list of
//! mappings that is searched from one end to the other.

use std::sync::Arc;

use iommu::{Access, AddressSpace, DmaFault, FaultReason, MapError, Mapping, Memory, MemoryFault, Prot, Requester};
use proptest::prelude::*;
use vm_memory::VolatileSlice;

/// Memory that says which byte of which memory was reached.
#[derive(Debug)]
struct Named(u8);

impl Named {
    fn byte(&self, offset: u64) -> u8 {
        self.0.wrapping_add((offset ^ offset >> 8 ^ offset >> 12) as u8)
    }
}

impl Memory for Named {
    fn slice(&self, _: u64, _: usize) -> Option<VolatileSlice<'_>> {
        None
    }

    fn read(&self, offset: u64, to: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        let bytes: Vec<u8> = (0..to.len() as u64).map(|at| self.byte(offset.wrapping_add(at))).collect();
        to.copy_from(&bytes);
        Ok(())
    }

    fn write(&self, _: u64, _: &VolatileSlice<'_>) -> Result<(), MemoryFault> {
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plain {
    first: u64,
    last: u64,
    prot: Prot,
    memory: usize,
    offset: u64,
    tag: u32,
}

#[derive(Clone, Debug)]
enum Step {
    Map(Plain),
    Unmap(u64, u64),
    Find(u64),
    Tag(u64, u32),
    Move(u64, usize, u64),
    Split(u64),
    Access(u64, usize, bool),
}

/// IOVAs that meet each other, and the extremes.
fn iova() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (0u64..64).prop_map(|page| page << 12),
        3 => (0u64..64).prop_map(|page| (page << 12).wrapping_neg()),
        2 => (0u32..64).prop_map(|bit| 1 << bit),
        2 => (0u64..1 << 20).prop_map(|page| page << 44 | page << 12),
        1 => any::<u64>(),
        1 => Just(0),
        1 => Just(u64::MAX),
    ]
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => (1u64..6).prop_map(|pages| pages << 12),
        2 => (0u32..63).prop_map(|bit| 1 << bit),
        1 => 1u64..5000,
        1 => Just(u64::MAX),
    ]
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    (iova(), length()).prop_map(|(first, length)| (first, first.saturating_add(length - 1)))
}

fn step() -> impl Strategy<Value = Step> {
    let map = (range(), 0u8..4, 0usize..3, any::<u64>(), any::<u32>()).prop_map(
        |((first, last), prot, memory, offset, tag)| {
            Step::Map(Plain { first, last, prot: Prot::from_bits_truncate(prot), memory, offset, tag })
        },
    );
    prop_oneof![
        8 => map,
        3 => range().prop_map(|(first, last)| Step::Unmap(first, last)),
        2 => iova().prop_map(Step::Find),
        1 => (iova(), any::<u32>()).prop_map(|(first, tag)| Step::Tag(first, tag)),
        1 => (iova(), 0usize..3, any::<u64>()).prop_map(|(first, memory, offset)| Step::Move(first, memory, offset)),
        2 => iova().prop_map(Step::Split),
        6 => (iova(), prop_oneof![Just(1usize), 1usize..20000], any::<bool>())
            .prop_map(|(iova, length, write)| Step::Access(iova, length, write)),
    ]
}

struct Lab {
    space: Arc<AddressSpace>,
    requester: Arc<Requester>,
    memories: Vec<Arc<dyn Memory>>,
    /// Sorted.
    model: Vec<Plain>,
}

impl Lab {
    fn new() -> Lab {
        let space = AddressSpace::new();
        let requester = Requester::new();
        requester.attach(Some(space.clone().into()));
        requester.set_bus_master(true);
        let memories = (0..3).map(|name| Arc::new(Named(name * 85)) as Arc<dyn Memory>).collect();
        Lab { space, requester, memories, model: Vec::new() }
    }

    fn mapping(&self, plain: Plain) -> Mapping {
        let Plain { first, last, prot, memory, offset, tag } = plain;
        Mapping { first, last, prot, memory: self.memories[memory].clone(), offset, tag }
    }

    fn plain(&self, mapping: &Mapping) -> Plain {
        let memory = self.memories.iter().position(|memory| Arc::ptr_eq(memory, &mapping.memory));
        let Mapping { first, last, prot, offset, tag, .. } = *mapping;
        Plain { first, last, prot, memory: memory.expect("one of ours"), offset, tag }
    }

    fn at(&self, iova: u64) -> Option<Plain> {
        self.model.iter().find(|plain| (plain.first..=plain.last).contains(&iova)).copied()
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Map(plain) => {
                let overlap = self.model.iter().any(|old| old.first <= plain.last && plain.first <= old.last);
                let result = self.space.map(self.mapping(plain));
                assert_eq!(result, if overlap { Err(MapError::Overlap) } else { Ok(()) });
                if !overlap {
                    self.model.push(plain);
                    self.model.sort_by_key(|plain| plain.first);
                }
            }
            Step::Unmap(first, last) => {
                let mut removed = Vec::new();
                self.space.unmap(first, last, &mut |mapping| removed.push(mapping.clone()));
                let removed: Vec<Plain> = removed.iter().map(|mapping| self.plain(mapping)).collect();
                let inside = |plain: &Plain| first <= plain.first && plain.last <= last;
                assert_eq!(removed, self.model.iter().copied().filter(inside).collect::<Vec<_>>());
                self.model.retain(|plain| !inside(plain));
            }
            Step::Find(iova) => {
                let found = self.space.at_or_after(iova).map(|mapping| self.plain(&mapping));
                assert_eq!(found, self.model.iter().find(|plain| iova <= plain.last).copied());
            }
            Step::Tag(first, tag) => {
                let known = self.space.update(first, &mut |mapping| mapping.tag = tag);
                let plain = self.model.iter_mut().find(|plain| plain.first == first);
                assert_eq!(known, plain.is_some());
                if let Some(plain) = plain {
                    plain.tag = tag;
                }
            }
            Step::Move(first, memory, offset) => {
                let new = self.memories[memory].clone();
                let known = self.space.update(first, &mut |mapping| {
                    mapping.memory = new.clone();
                    mapping.offset = offset;
                });
                let plain = self.model.iter_mut().find(|plain| plain.first == first);
                assert_eq!(known, plain.is_some());
                if let Some(plain) = plain {
                    (plain.memory, plain.offset) = (memory, offset);
                }
            }
            Step::Split(iova) => {
                let old = self.at(iova);
                assert_eq!(self.space.split_at(iova), old.is_some());
                if let Some(old) = old.filter(|old| old.first != iova) {
                    self.model.retain(|plain| plain.first != old.first);
                    let offset = old.offset.wrapping_add(iova - old.first);
                    self.model.push(Plain { last: iova - 1, ..old });
                    self.model.push(Plain { first: iova, offset, ..old });
                    self.model.sort_by_key(|plain| plain.first);
                }
            }
            Step::Access(iova, length, write) => self.access(iova, length, write),
        }
        assert_eq!(self.space.len(), self.model.len());
    }

    /// The bytes that a read gives up to a fault, and the fault.
    fn expected(&self, iova: u64, length: usize, access: Access) -> (Vec<u8>, Option<DmaFault>) {
        let need = if access == Access::Write { Prot::WRITE } else { Prot::READ };
        let mut bytes = Vec::new();
        let mut at = iova;
        for done in 0..length {
            let fault = |reason| Some(DmaFault { iova: at, access, reason });
            if done > 0 && at == 0 {
                return (bytes, fault(FaultReason::NotMapped));
            }
            let Some(plain) = self.at(at) else { return (bytes, fault(FaultReason::NotMapped)) };
            if !plain.prot.contains(need) {
                return (bytes, fault(FaultReason::Permission));
            }
            bytes.push(Named(plain.memory as u8 * 85).byte(plain.offset.wrapping_add(at - plain.first)));
            at = at.wrapping_add(1);
        }
        (bytes, None)
    }

    fn access(&self, iova: u64, length: usize, write: bool) {
        let access = if write { Access::Write } else { Access::Read };
        let (bytes, fault) = self.expected(iova, length, access);
        let mut session = self.requester.session();
        let mut buffer = vec![0; length];
        let result = if write { session.write(iova, &buffer) } else { session.read(iova, &mut buffer) };
        assert_eq!(result.err(), fault);
        if !write {
            assert_eq!(buffer[..bytes.len()], bytes);
            assert!(buffer[bytes.len()..].iter().all(|byte| *byte == 0));
        }
        assert_eq!(self.requester.take_faults(), Vec::from_iter(fault));
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 4 } else { 200 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn agrees_with_a_list(steps in prop::collection::vec(step(), 1..if cfg!(miri) { 20 } else { 150 })) {
        let mut lab = Lab::new();
        for step in &steps {
            lab.run(step);
        }
        let model = std::mem::take(&mut lab.model);
        for plain in &model {
            let found = lab.space.at_or_after(plain.first).map(|mapping| lab.plain(&mapping));
            prop_assert_eq!(found, Some(*plain));
        }
        let mut removed = 0;
        lab.space.unmap(0, u64::MAX, &mut |_| removed += 1);
        prop_assert_eq!(removed, model.len());
        prop_assert!(lab.space.is_empty());
        // Nothing of the memories is kept, neither by the space nor by the requester.
        for memory in &lab.memories {
            prop_assert_eq!(Arc::strong_count(memory), 1);
        }
    }
}
