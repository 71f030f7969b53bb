// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Drivers of the pretend kernel and how functions are bound to them
//! (iommu-groups.md section 2.5).

use device::{Board, Driver, Slot};
use pci::Address;
use uapi::Errno;

/// The drivers that are loaded and the ids that `new_id` taught them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Drivers {
    names: Vec<String>,
    vfio_ids: Vec<Id>,
}

impl Drivers {
    /// `vfio-pci`, `pcieport` and every driver that something is bound to.
    pub(crate) fn of(board: &Board) -> Drivers {
        let mut names = vec!["vfio-pci".to_owned(), "pcieport".to_owned()];
        for driver in board.slots.values().filter_map(|slot| slot.driver.as_ref()) {
            if !names.iter().any(|n| n == driver.name()) {
                names.push(driver.name().to_owned());
            }
        }
        Drivers { names, vfio_ids: Vec::new() }
    }

    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// The driver called `name`.
    pub(crate) fn named(&self, name: &str) -> Option<Driver> {
        self.names.iter().any(|n| n == name).then(|| driver(name))
    }

    /// Which driver takes a function that is probed now: the override alone if
    /// there is one (GRP-034), else vfio-pci for ids it was taught (GRP-061).
    pub(crate) fn matching(&self, board: &Board, address: Address) -> Option<Driver> {
        let slot = board.slots.get(&address)?;
        if let Some(name) = &slot.driver_override {
            return self.named(name);
        }
        let spec = board.fabric.function(address)?.spec();
        self.vfio_ids.iter().any(|id| id.matches(spec)).then_some(Driver::VfioPci)
    }

    /// `new_id`: `VVVV DDDD [SVVV SDDD [CCCCCC [MMMMMM]]]` in hex; the same id
    /// twice is `EEXIST` (GRP-061).
    pub(crate) fn new_id(&mut self, text: &str) -> Result<(), Errno> {
        self.add_id(Id::parse(text.split_whitespace())?)
    }

    /// One item of vfio-pci's module option `ids`: the same with colons
    /// (GRP-062).
    pub(crate) fn option_id(&mut self, text: &str) -> Result<(), Errno> {
        self.add_id(Id::parse(text.split(':'))?)
    }

    fn add_id(&mut self, id: Id) -> Result<(), Errno> {
        if self.vfio_ids.contains(&id) {
            return Err(Errno::EEXIST);
        }
        self.vfio_ids.push(id);
        Ok(())
    }

    /// `remove_id`; an id that is not there is `ENODEV`.
    pub(crate) fn remove_id(&mut self, text: &str) -> Result<(), Errno> {
        let id = Id::parse(text.split_whitespace())?;
        let same = |i: &Id| (i.vendor, i.device) == (id.vendor, id.device);
        let at = self.vfio_ids.iter().position(same).ok_or(Errno::ENODEV)?;
        self.vfio_ids.remove(at);
        Ok(())
    }
}

/// Which functions a driver takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Id {
    vendor: u16,
    device: u16,
    /// `None` for any.
    subsystem: Option<(u16, u16)>,
    class: u32,
    /// Bits of the class code that count.
    mask: u32,
}

impl Id {
    fn parse<'a>(words: impl Iterator<Item = &'a str>) -> Result<Id, Errno> {
        let numbers: Result<Vec<u32>, _> = words.map(|word| u32::from_str_radix(word, 16)).collect();
        let short = |n: u32| u16::try_from(n).map_err(|_| Errno::EINVAL);
        let (ids, class) = match numbers.map_err(|_| Errno::EINVAL)?.as_slice() {
            [v, d] => ((*v, *d, None), (0, 0)),
            [v, d, sv, sd] => ((*v, *d, Some((*sv, *sd))), (0, 0)),
            [v, d, sv, sd, class] => ((*v, *d, Some((*sv, *sd))), (*class, 0xff_ffff)),
            [v, d, sv, sd, class, mask] => ((*v, *d, Some((*sv, *sd))), (*class, *mask)),
            _ => return Err(Errno::EINVAL),
        };
        let subsystem = match ids.2 {
            Some((vendor, device)) => Some((short(vendor)?, short(device)?)),
            None => None,
        };
        Ok(Id { vendor: short(ids.0)?, device: short(ids.1)?, subsystem, class: class.0, mask: class.1 })
    }

    fn matches(&self, spec: &pci::FunctionSpec) -> bool {
        (spec.vendor, spec.device) == (self.vendor, self.device)
            && self.subsystem.is_none_or(|s| s == (spec.subsystem_vendor, spec.subsystem_device))
            && (spec.class ^ self.class) & self.mask == 0
    }
}

/// The driver called `name`, whether loaded or not.
pub(crate) fn driver(name: &str) -> Driver {
    match name {
        "vfio-pci" => Driver::VfioPci,
        "pcieport" => Driver::Pcieport,
        _ => Driver::Kernel(name.to_owned()),
    }
}

/// Functions that vfio-pci leaves alone: their DMA cannot be made safe by a
/// reset (Intel QAT C3xxx, C62x, DH895xCC and their VFs, DSA and IAX of SPR).
const DENIED: [(u16, u16); 8] = [
    (0x8086, 0x19e2),
    (0x8086, 0x19e3),
    (0x8086, 0x37c8),
    (0x8086, 0x37c9),
    (0x8086, 0x0435),
    (0x8086, 0x0443),
    (0x8086, 0x0b25),
    (0x8086, 0x0cfe),
];

/// Whether `driver` may take the function, as its probe would decide
/// (API-192): vfio-pci refuses bridges, functions without a group (unless in
/// no-IOMMU mode, GRP-057) and PFs with
/// VFs enabled.
pub(crate) fn probe(board: &Board, address: Address, driver: &Driver, noiommu: bool) -> Result<(), Errno> {
    let function = board.fabric.function(address).ok_or(Errno::ENODEV)?;
    match driver {
        Driver::VfioPci => {
            if function.read(0x0e, 1) & 0x7f != 0 {
                return Err(Errno::EINVAL);
            }
            let slot: Option<&Slot> = board.slots.get(&address);
            if slot.is_none_or(|s| s.endpoint.is_none()) || (board.fabric.group(address).is_none() && !noiommu) {
                return Err(Errno::EINVAL);
            }
            if !board.fabric.virtual_functions(address).is_empty() {
                return Err(Errno::EBUSY);
            }
            if DENIED.contains(&(function.spec().vendor, function.spec().device)) {
                return Err(Errno::EINVAL);
            }
            Ok(())
        }
        Driver::Pcieport if function.read(0x0e, 1) & 0x7f != 1 => Err(Errno::ENODEV),
        Driver::Pcieport | Driver::Kernel(_) => Ok(()),
    }
}
