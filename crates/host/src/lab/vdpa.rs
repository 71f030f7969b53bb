// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Keys of `[[vdpa]]`: what a vdpa device's parent is like. The model's own
//! keys stand beside them (`virtio`).

use device::virtio::Latch;
use uapi::vhost::backend;
use vdpa::{OnReset, Parent, ParentSpec};

use super::section::{Number, Place, Section, Switch};
use super::virtio::VirtioModel;
use super::{LabError, arguments};

/// A device of the vdpa bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VdpaSpec {
    /// Its name on the bus; `None`: `vdpa` and the lowest free number.
    pub name: Option<String>,
    /// The device.
    pub model: VirtioModel,
    /// Its parent.
    pub parent: ParentSpec,
    /// When what was set of a queue is taken.
    pub latch: Latch,
    /// Where it was described.
    pub place: Place,
}

impl VdpaSpec {
    /// Reads `MODEL[,key=value]...`; `place` is how messages call it.
    pub fn parse(place: &str, argument: &str) -> Result<VdpaSpec, LabError> {
        VdpaSpec::decode(arguments("a vdpa device", Place::argument(place), argument)?)
    }

    pub(super) fn decode(mut section: Section) -> Result<VdpaSpec, LabError> {
        let place = section.place.clone();
        let name_place = section.place_of("name");
        let name: Option<String> = section.take("name")?;
        let good = |name: &String| !name.is_empty() && name.len() < 64 && name.bytes().all(is_name);
        if name.as_ref().is_some_and(|name| !good(name)) {
            return Err(LabError::new(&name_place, "`name` is up to 63 letters, digits, `-`, `_` and `.`"));
        }
        let mut parent = section.take_or("parent", Parent::default())?.spec();
        if let Some(Switch(use_va)) = section.take("use_va")? {
            parent.use_va = use_va;
        }
        let entries_place = section.place_of("max_iotlb_entries");
        let usual = vdpa::MAX_ENTRIES as u64;
        let Number(entries) = section.take_or("max_iotlb_entries", Number(usual))?;
        // vdpa_sim's parameter has the same name and default (VDPA-7.13).
        parent.max_entries = usize::try_from(entries)
            .ok()
            .filter(|entries| *entries <= MOST_ENTRIES)
            .ok_or_else(|| LabError::new(&entries_place, format!("`max_iotlb_entries` is at most {MOST_ENTRIES}")))?;
        if parent.table_entries != usize::MAX {
            parent.table_entries = parent.max_entries;
        }
        let Switch(suspend) = section.take_or("suspend", Switch(parent.suspend))?;
        (parent.suspend, parent.resume) = (suspend, suspend);
        let Switch(persist) = section.take_or("persist", Switch(false))?;
        if persist {
            parent.backend |= backend::IOTLB_PERSIST;
        }
        let choice_place = section.place_of("iotlb_on_reset");
        parent.on_reset = section.take_or("iotlb_on_reset", OnReset::default())?;
        parent.check().map_err(|why| LabError::new(&choice_place, format!("`iotlb_on_reset`: {why}")))?;
        let latch_place = section.place_of("latch");
        let latch = match section.take_or("latch", String::from("run"))?.as_str() {
            "run" => Latch::Run,
            "ready" => Latch::Ready,
            _ => return Err(LabError::new(&latch_place, "`latch` is run or ready")),
        };
        let model = VirtioModel::decode(&mut section)?;
        section.finish()?;
        Ok(VdpaSpec { name, model, parent, latch, place })
    }
}

/// Room for a record of each page of 64 GiB.
const MOST_ENTRIES: usize = 1 << 24;

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails(argument: &str, with: &str) {
        let error = VdpaSpec::parse("--vdpa", argument).unwrap_err().to_string();
        assert!(error.contains(with), "{argument}: {error}");
    }

    #[test]
    fn a_vdpa_device_has_these_keys() {
        let spec = VdpaSpec::parse("x", "net").unwrap();
        assert_eq!((spec.name, spec.parent, spec.latch), (None, Parent::Sim.spec(), Latch::Run));
        let text = "blk,name=d0,parent=mlx5,iotlb_on_reset=must-ack,max_iotlb_entries=1000000,latch=ready,suspend=off";
        let spec = VdpaSpec::parse("x", text).unwrap();
        assert_eq!((spec.name.as_deref(), spec.parent.parent, spec.latch), (Some("d0"), Parent::Mlx5, Latch::Ready));
        assert_eq!((spec.parent.on_reset, spec.parent.max_entries), (OnReset::MustAck, 1_000_000));
        assert!(!spec.parent.suspend && !spec.parent.resume);
        let own = VdpaSpec::parse("x", "blk,parent=vduse,persist=on,use_va=off").unwrap();
        assert!(own.parent.has_persistent_map() && !own.parent.use_va);
        fails("net,parent=virtio", "`virtio` is none of sim, sim-dma, mlx5, platform, vduse, dma");
        fails("net,iotlb_on_reset=maybe", "none of negotiated, clean, keep, must-ack");
        fails("net,parent=platform,iotlb_on_reset=clean", "`clean` needs a parent that");
        fails("net,parent=vduse,iotlb_on_reset=must-ack", "`must-ack` needs a parent that offers");
        fails("net,latch=never", "`latch` is run or ready");
        fails("net,name=a/b", "`name` is up to 63");
        fails("net,max_iotlb_entries=99999999999", "at most");
        fails("net,parnet=sim", "unknown key `parnet`");
    }
}
