// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Containers: `/dev/vfio/vfio`.
//!
//! A container is empty at first. Groups enter it, then a backend is chosen
//! with `SET_IOMMU`, which holds the mappings. When the last group leaves, the
//! backend and its mappings go and the container is as at first (API-020).

use ::device::Board;
use caller::{Accounts, Caller, Capability, FileId, Reply};
use pci::Address;
use uapi::Errno;
use uapi::vfio::container::{API_VERSION, CHECK_EXTENSION, GET_API_VERSION, SET_IOMMU, extension};

use crate::Options;
use crate::ownership::{GroupTable, Kind};
use crate::type1::Type1;

/// What containers use of the rest of the subsystem.
pub(crate) struct Surroundings<'a> {
    pub(crate) options: &'a Options,
    pub(crate) table: &'a GroupTable,
    pub(crate) locked: &'a Accounts,
    pub(crate) board: &'a Board,
    pub(crate) caller: &'a dyn Caller,
}

/// Where the mappings of a container are kept.
#[derive(Debug)]
enum Backend {
    Type1(Box<Type1>),
    NoIommu,
}

/// An open container.
#[derive(Debug, Default)]
pub(crate) struct Container {
    /// Group files and their group numbers, in the order in which they came.
    groups: Vec<(FileId, u32)>,
    noiommu: bool,
    backend: Option<Backend>,
    closed: bool,
}

/// Whether a backend claims an extension before it is chosen.
type Claims = fn(u64, &Options) -> u64;

/// Backends in the order in which their modules register.
const BACKENDS: [(Kind, Claims); 2] = [
    (Kind::NoIommu, |number, options| u64::from(options.enable_unsafe_noiommu_mode && number == extension::NOIOMMU)),
    (Kind::Iommu, |number, _| Type1::claims(number)),
];

impl Container {
    /// `ioctl` on the container's file.
    pub(crate) fn ioctl(&mut self, request: u32, arg: u64, cx: &mut Surroundings<'_>) -> Result<Reply, Errno> {
        match request {
            GET_API_VERSION => Ok(Reply::Value(API_VERSION)),
            CHECK_EXTENSION => Ok(Reply::Value(self.check_extension(arg, cx.options))),
            SET_IOMMU => self.set_iommu(arg, cx).map(|()| Reply::Value(0)),
            _ => match &mut self.backend {
                None => Err(Errno::EINVAL), // API-017
                Some(Backend::NoIommu) => Err(Errno::ENOTTY),
                Some(Backend::Type1(type1)) => {
                    type1.ioctl(request, arg, cx.caller, cx.locked).map(|()| Reply::Value(0))
                }
            },
        }
    }

    fn check_extension(&self, number: u64, options: &Options) -> u64 {
        match &self.backend {
            Some(Backend::Type1(type1)) => type1.check_extension(number),
            Some(Backend::NoIommu) => BACKENDS[0].1(number, options),
            None => BACKENDS
                .iter()
                .filter(|(kind, _)| self.groups.is_empty() || self.allows(*kind))
                .map(|(_, claims)| claims(number, options))
                .find(|answer| *answer > 0)
                .unwrap_or(0),
        }
    }

    /// Only no-IOMMU groups use the no-IOMMU backend, and they no other.
    fn allows(&self, backend: Kind) -> bool {
        self.noiommu == (backend == Kind::NoIommu)
    }

    fn set_iommu(&mut self, number: u64, cx: &mut Surroundings<'_>) -> Result<(), Errno> {
        if self.groups.is_empty() || self.backend.is_some() {
            return Err(Errno::EINVAL); // API-013
        }
        let mut last = Errno::ENODEV;
        for (kind, claims) in BACKENDS {
            if !self.allows(kind) || claims(number, cx.options) == 0 {
                continue;
            }
            match self.open_backend(kind, number, cx) {
                Ok(backend) => {
                    self.backend = Some(backend);
                    tracing::debug!(name: "vfio.set_iommu", number, groups = self.groups.len());
                    return Ok(());
                }
                Err(errno) => last = errno,
            }
        }
        Err(last)
    }

    /// Opens a backend and attaches all groups to it, or none.
    fn open_backend(&self, kind: Kind, number: u64, cx: &mut Surroundings<'_>) -> Result<Backend, Errno> {
        match kind {
            Kind::NoIommu => {
                if cx.caller.capable(Capability::SysRawio) {
                    Ok(Backend::NoIommu)
                } else {
                    Err(Errno::EPERM) // API-016
                }
            }
            Kind::Iommu => {
                let mut type1 = Box::new(Type1::open(number, cx.options)?);
                for (n, (_, group)) in self.groups.iter().enumerate() {
                    if let Err(errno) = type1.attach(&cx.table.members(cx.board, *group), cx.options, cx.board) {
                        for (_, group) in self.groups.iter().take(n) {
                            type1.detach(&cx.table.members(cx.board, *group), cx.board);
                        }
                        return Err(errno);
                    }
                }
                Ok(Backend::Type1(type1))
            }
        }
    }

    /// A group enters; API-043, API-045.
    pub(crate) fn attach(
        &mut self,
        file: FileId,
        group: u32,
        kind: Kind,
        cx: &mut Surroundings<'_>,
    ) -> Result<(), Errno> {
        let noiommu = kind == Kind::NoIommu;
        if noiommu && !cx.caller.capable(Capability::SysRawio) {
            return Err(Errno::EPERM);
        }
        if !self.groups.is_empty() && self.noiommu != noiommu {
            return Err(Errno::EPERM); // API-022
        }
        if !noiommu && cx.table.kernel_owns_dma(cx.board, group) {
            return Err(Errno::EPERM);
        }
        if let Some(Backend::Type1(type1)) = &mut self.backend {
            type1.attach(&cx.table.members(cx.board, group), cx.options, cx.board)?;
        }
        self.noiommu = noiommu;
        self.groups.push((file, group));
        Ok(())
    }

    /// A function joins a group that is in the container.
    pub(crate) fn function_added(&self, address: Address, board: &Board) {
        if let Some(Backend::Type1(type1)) = &self.backend {
            type1.attach_function(address, board);
        }
    }

    /// A group leaves. With the last one the backend goes.
    pub(crate) fn detach(&mut self, file: FileId, table: &GroupTable, locked: &Accounts, board: &Board) {
        let Some(at) = self.groups.iter().position(|(member, _)| *member == file) else { return };
        let (_, group) = self.groups.remove(at);
        if let Some(Backend::Type1(type1)) = &mut self.backend {
            type1.detach(&table.members(board, group), board);
        }
        if self.groups.is_empty()
            && let Some(Backend::Type1(type1)) = self.backend.take()
        {
            type1.release(locked);
        }
    }

    /// Whether a backend has been chosen.
    pub(crate) fn has_iommu(&self) -> bool {
        self.backend.is_some()
    }

    /// The file is closed; the container stays while groups are in it
    /// (API-019).
    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    /// Whether nobody can reach the container any more.
    pub(crate) fn is_gone(&self) -> bool {
        self.closed && self.groups.is_empty()
    }
}
