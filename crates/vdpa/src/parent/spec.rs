// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Kinds of parent: how the drivers behind a vdpa bus differ, as far as a
//! program can tell.

use std::fmt;
use std::str::FromStr;

use uapi::vhost::backend;

/// How mappings reach the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mapping {
    /// Through a domain of the platform's IOMMU that vhost-vdpa itself owns.
    Platform,
    /// The parent is told of each record (`dma_map`, `dma_unmap`).
    DmaMap,
    /// The parent is given all records of an address space at once (`set_map`).
    SetMap,
}

/// What becomes of the device's mappings at a reset. All but the first go
/// beyond Linux.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnReset {
    /// Linux's rule: they are kept if the program has acknowledged
    /// IOTLB_PERSIST, or if the parent never loses them.
    #[default]
    Negotiated,
    /// The old behaviour: they go at each reset, and IOTLB_PERSIST is not
    /// offered.
    Clean,
    /// They are kept whatever was acknowledged.
    Keep,
    /// As negotiated, but DRIVER_OK is refused to a program that has not
    /// acknowledged IOTLB_PERSIST.
    MustAck,
}

impl OnReset {
    /// Its name in lab files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            OnReset::Negotiated => "negotiated",
            OnReset::Clean => "clean",
            OnReset::Keep => "keep",
            OnReset::MustAck => "must-ack",
        }
    }
}

/// A word that names nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{word}` is none of {known}")]
pub struct UnknownWord {
    word: String,
    known: String,
}

impl UnknownWord {
    fn new(word: &str, known: impl IntoIterator<Item = &'static str>) -> UnknownWord {
        UnknownWord { word: word.to_owned(), known: known.into_iter().collect::<Vec<_>>().join(", ") }
    }
}

impl FromStr for OnReset {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<OnReset, UnknownWord> {
        let all = [OnReset::Negotiated, OnReset::Clean, OnReset::Keep, OnReset::MustAck];
        all.into_iter()
            .find(|choice| choice.name() == text)
            .ok_or_else(|| UnknownWord::new(text, all.map(OnReset::name)))
    }
}

/// The parents that can be chosen by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Parent {
    /// vdpa_sim as it is loaded: `set_map`, VA mode, 1:1 until mapped.
    #[default]
    Sim,
    /// vdpa_sim with `batch_mapping=0`: `dma_map`.
    SimDma,
    /// Like mlx5_vdpa: `set_map`, PA mode, wipes at a reset if not told otherwise.
    Mlx5,
    /// Like ifcvf, vp_vdpa and others behind the platform's IOMMU.
    Platform,
    /// Like VDUSE: `set_map`, VA mode, nothing tells it of a reset of maps.
    Vduse,
    /// `dma_map` without `reset_map`: no driver in Linux is one.
    Dma,
}

impl Parent {
    /// All of them.
    pub const ALL: [Parent; 6] =
        [Parent::Sim, Parent::SimDma, Parent::Mlx5, Parent::Platform, Parent::Vduse, Parent::Dma];

    /// Its name in lab files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Parent::Sim => "sim",
            Parent::SimDma => "sim-dma",
            Parent::Mlx5 => "mlx5",
            Parent::Platform => "platform",
            Parent::Vduse => "vduse",
            Parent::Dma => "dma",
        }
    }

    /// What it is like.
    #[must_use]
    pub fn spec(self) -> ParentSpec {
        let base = ParentSpec {
            parent: self,
            vendor: None,
            mapping: Mapping::SetMap,
            use_va: false,
            reset_map: false,
            compat_reset: false,
            one_to_one: false,
            set_group_asid: true,
            keeps_groups: false,
            vq_group: true,
            desc_group: false,
            vq_size: false,
            suspend: true,
            resume: true,
            backend: 0,
            doorbell: false,
            split_positions: false,
            coherent: true,
            iova: (0, u64::MAX),
            table_entries: usize::MAX,
            max_entries: MAX_ENTRIES,
            on_reset: OnReset::Negotiated,
        };
        match self {
            // VDPA-9.1, VDPA-9.2
            Parent::Sim => ParentSpec {
                vendor: Some(0),
                use_va: true,
                reset_map: true,
                compat_reset: true,
                one_to_one: true,
                backend: backend::ENABLE_AFTER_DRIVER_OK,
                split_positions: true,
                table_entries: MAX_ENTRIES,
                ..base
            },
            Parent::SimDma => {
                ParentSpec { parent: self, mapping: Mapping::DmaMap, vq_size: true, ..Parent::Sim.spec() }
            }
            // VDPA-8.4, VDPA-8.6; its PCI vendor
            Parent::Mlx5 => ParentSpec {
                vendor: Some(0x15b3),
                reset_map: true,
                compat_reset: true,
                one_to_one: true,
                backend: backend::ENABLE_AFTER_DRIVER_OK,
                ..base
            },
            // VDPA-8.8; one group, so no operation to choose (VDPA-8 table)
            Parent::Platform => ParentSpec {
                mapping: Mapping::Platform,
                set_group_asid: false,
                vq_group: false,
                doorbell: true,
                suspend: false,
                resume: false,
                iova: (0, (1 << 48) - 1),
                ..base
            },
            // VDPA-8.9, VDPA-6.9
            Parent::Vduse => {
                ParentSpec { use_va: true, keeps_groups: true, vq_size: true, suspend: false, resume: false, ..base }
            }
            Parent::Dma => ParentSpec { mapping: Mapping::DmaMap, ..base },
        }
    }
}

impl fmt::Display for Parent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Parent {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Parent, UnknownWord> {
        Parent::ALL
            .into_iter()
            .find(|parent| parent.name() == text)
            .ok_or_else(|| UnknownWord::new(text, Parent::ALL.map(Parent::name)))
    }
}

/// `max_iotlb_entries` of vhost_vdpa and of vdpa_sim.
pub const MAX_ENTRIES: usize = 2048;

/// What a parent's driver offers and does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentSpec {
    /// Whom it was made after.
    pub parent: Parent,
    /// The vendor that it says; `None`: what the device says (VDPA-9.3).
    pub vendor: Option<u32>,
    /// How mappings reach it.
    pub mapping: Mapping,
    /// VA mode: it works on files, not on pinned pages.
    pub use_va: bool,
    /// It has `reset_map`.
    pub reset_map: bool,
    /// It has `compat_reset`: cleans its table at a reset if it is told to.
    pub compat_reset: bool,
    /// With nothing mapped its table leads everything to itself (VDPA-8.6).
    pub one_to_one: bool,
    /// It has `set_group_asid`.
    pub set_group_asid: bool,
    /// Groups keep their address spaces over a reset.
    pub keeps_groups: bool,
    /// It has `get_vq_group`.
    pub vq_group: bool,
    /// It has `get_vq_desc_group`; descriptors are in their queue's group.
    pub desc_group: bool,
    /// It has `get_vq_size`.
    pub vq_size: bool,
    /// It has `suspend`.
    pub suspend: bool,
    /// It has `resume`.
    pub resume: bool,
    /// Backend features that it declares itself.
    pub backend: u64,
    /// Queues have a doorbell page that can be mapped.
    pub doorbell: bool,
    /// Positions are always taken as those of split rings (VDPA-6.3).
    pub split_positions: bool,
    /// The platform's IOMMU keeps its caches coherent (VDPA-1.4).
    pub coherent: bool,
    /// IOVAs that can be mapped, both ends inclusive (VDPA-1.5).
    pub iova: (u64, u64),
    /// Records that its own table takes.
    pub table_entries: usize,
    /// Records that vhost-vdpa takes in an address space (VDPA-7.13).
    pub max_entries: usize,
    /// What becomes of its table at a reset.
    pub on_reset: OnReset,
}

impl ParentSpec {
    /// Whether its mappings outlive a reset as far as Linux can tell: what
    /// makes IOTLB_PERSIST offered (VDPA-4).
    #[must_use]
    pub fn has_persistent_map(&self) -> bool {
        self.on_reset != OnReset::Clean
            && (self.mapping == Mapping::Platform || self.reset_map || self.backend & backend::IOTLB_PERSIST != 0)
    }

    /// Why the choice for resets makes no sense for this parent.
    pub fn check(&self) -> Result<(), &'static str> {
        match self.on_reset {
            OnReset::Clean if !self.compat_reset => {
                Err("`clean` needs a parent that cleans its own table at a reset: sim, sim-dma or mlx5")
            }
            OnReset::MustAck if !self.has_persistent_map() => {
                Err("`must-ack` needs a parent that offers IOTLB_PERSIST: sim, sim-dma, mlx5 or platform")
            }
            _ => Ok(()),
        }
    }
}
