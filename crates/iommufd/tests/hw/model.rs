// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Random attachments against a small model: which HWPT each PASID of each
//! group is attached to, by whom, and who is left to hold which object.

use std::collections::{BTreeMap, BTreeSet};

use iommufd::{Binding, DeviceProperties, ObjectId};
use proptest::prelude::*;
use uapi::Errno;

use crate::lab::{Lab, PASID};

/// Two groups of two devices each.
const DEVICES: usize = 4;
const PASIDS: [u32; 3] = [0, 1, 9];
const IOASES: usize = 2;
/// Manual HWPTs: of each IOAS one without and one with the PASID flag.
const MANUAL: usize = 2 * IOASES;

#[derive(Clone, Copy, Debug)]
enum Op {
    Attach { device: usize, pasid: usize, to: To },
    Replace { device: usize, pasid: usize, to: To },
    Detach { device: usize, pasid: usize },
}

#[derive(Clone, Copy, Debug)]
enum To {
    Ioas(usize),
    Manual(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let to = prop_oneof![(0..IOASES).prop_map(To::Ioas), (0..MANUAL).prop_map(To::Manual)];
    (0..DEVICES, 0..PASIDS.len(), to, 0..5u8).prop_map(|(device, pasid, to, what)| match what {
        0 | 1 => Op::Attach { device, pasid, to },
        2 | 3 => Op::Replace { device, pasid, to },
        _ => Op::Detach { device, pasid },
    })
}

/// What is attached: an automatic HWPT of an IOAS, or a manual one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Hwpt {
    Automatic(usize),
    Manual(usize),
}

impl Hwpt {
    fn of(to: To) -> Hwpt {
        match to {
            To::Ioas(ioas) => Hwpt::Automatic(ioas),
            To::Manual(hwpt) => Hwpt::Manual(hwpt),
        }
    }

    fn has_pasids(self) -> bool {
        matches!(self, Hwpt::Manual(n) if n % 2 == 1)
    }
}

/// By group and PASID.
#[derive(Debug, Default)]
struct Model(BTreeMap<(usize, u32), (Hwpt, BTreeSet<usize>)>);

impl Model {
    fn fits(&self, group: usize, pasid: u32, to: Hwpt) -> bool {
        if pasid == 0 {
            to.has_pasids() || !self.0.keys().any(|(of, pasid)| *of == group && *pasid != 0)
        } else {
            to.has_pasids() && self.0.get(&(group, 0)).is_none_or(|(rid, _)| rid.has_pasids())
        }
    }

    fn attach(&mut self, device: usize, pasid: u32, to: Hwpt) -> Result<Hwpt, Errno> {
        let group = device / 2;
        let fits = self.fits(group, pasid, to);
        match self.0.get_mut(&(group, pasid)) {
            Some((_, devices)) if devices.contains(&device) => Err(Errno::EBUSY),
            Some((hwpt, devices)) if *hwpt == to => {
                devices.insert(device);
                Ok(to)
            }
            None if fits => {
                self.0.insert((group, pasid), (to, BTreeSet::from([device])));
                Ok(to)
            }
            _ => Err(Errno::EINVAL),
        }
    }

    fn replace(&mut self, device: usize, pasid: u32, to: Hwpt) -> Result<Hwpt, Errno> {
        let group = device / 2;
        let at = self.0.get(&(group, pasid)).filter(|(_, devices)| devices.contains(&device));
        let (old, _) = at.ok_or(Errno::EINVAL)?;
        if *old != to && !self.fits(group, pasid, to) {
            return Err(Errno::EINVAL);
        }
        if let Some((hwpt, _)) = self.0.get_mut(&(group, pasid)) {
            *hwpt = to;
        }
        Ok(to)
    }

    fn detach(&mut self, device: usize, pasid: u32) {
        if let Some((_, devices)) = self.0.get_mut(&(device / 2, pasid)) {
            devices.remove(&device);
        }
        self.0.retain(|_, (_, devices)| !devices.is_empty());
    }

    fn is_used(&self, hwpt: Hwpt) -> bool {
        self.0.values().any(|(to, _)| *to == hwpt)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 256 }, ..ProptestConfig::default() })]

    /// IOMMUFD-8.11, IOMMUFD-8.13, IOMMUFD-8.16, IOMMUFD-2.5, IOMMUFD-2.9
    #[test]
    fn attachments_are_as_the_model_says(ops in prop::collection::vec(op(), 1..60)) {
        let mut lab = Lab::new();
        let properties = DeviceProperties { max_pasids: 16, ..DeviceProperties::default() };
        let requesters: Vec<_> = (0..DEVICES).map(|_| iommu::Requester::new()).collect();
        let devices: Vec<ObjectId> = (0..DEVICES).map(|n| {
            let group = n / 2;
            let members = requesters[2 * group..2 * group + 2].to_vec();
            let requester = requesters[n].clone();
            let binding = Binding { group: group as u64, requester, members, properties: properties.clone() };
            lab.iommufd.bind(lab.context, binding).unwrap()
        }).collect();
        let ioases: Vec<u32> = (0..IOASES).map(|_| lab.ioas()).collect();
        let manual: Vec<u32> = (0..MANUAL)
            .map(|n| lab.hwpt(devices[0].0, ioases[n / 2], if n % 2 == 1 { PASID } else { 0 }).unwrap())
            .collect();
        let mut model = Model::default();
        // The ids of automatic HWPTs as they were last given.
        let mut automatic: BTreeMap<usize, u32> = BTreeMap::new();
        for op in ops {
            let id = |to| match to {
                To::Ioas(n) => ioases[n],
                To::Manual(n) => manual[n],
            };
            let (expected, got, to) = match op {
                Op::Attach { device, pasid, to } => (
                    model.attach(device, PASIDS[pasid], Hwpt::of(to)),
                    lab.attach(devices[device], PASIDS[pasid], id(to)),
                    to,
                ),
                Op::Replace { device, pasid, to } => (
                    model.replace(device, PASIDS[pasid], Hwpt::of(to)),
                    lab.replace(devices[device], PASIDS[pasid], id(to)),
                    to,
                ),
                Op::Detach { device, pasid } => {
                    model.detach(device, PASIDS[pasid]);
                    lab.detach(devices[device], PASIDS[pasid]);
                    continue;
                }
            };
            prop_assert_eq!(expected.map(|_| ()), got.map(|_| ()), "{:?}", op);
            if let (Ok(Hwpt::Automatic(n)), Ok(hwpt)) = (expected, got) {
                automatic.insert(n, hwpt);
            }
            if let (To::Manual(n), Ok(hwpt)) = (to, got) {
                prop_assert_eq!(hwpt, manual[n]);
            }
            // Who is used is busy, and automatic ones that are not are gone.
            for (n, hwpt) in &automatic {
                if model.is_used(Hwpt::Automatic(*n)) {
                    prop_assert_eq!(lab.destroy(*hwpt), Err(Errno::EBUSY));
                }
            }
            for (n, hwpt) in manual.iter().enumerate() {
                if model.is_used(Hwpt::Manual(n)) {
                    prop_assert_eq!(lab.destroy(*hwpt), Err(Errno::EBUSY));
                }
            }
        }
        // All detach: then every object can go.
        for device in &devices {
            lab.iommufd.unbind(lab.context, *device);
        }
        for id in manual.iter().chain(&ioases) {
            prop_assert_eq!(lab.destroy(*id), Ok(()));
        }
        prop_assert_eq!(lab.ioas(), 1, "nothing is left");
    }
}
