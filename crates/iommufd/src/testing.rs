// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A lab for this crate's tests: one program with `/dev/iommu` open.

use std::sync::Arc;

use caller::testing::{Client, TestPlatform};
use caller::{Accounts, FileId, FileIds, Platform, Reply};
use iommu::Requester;
use uapi::Errno;
use uapi::iommufd::{Command, IoasAlloc, IoasCopy, IoasMap, IoasUnmap};

use crate::context::Context;
use crate::ioas::{DomainProperties, Owner};
use crate::{Call, Iommufd, ObjectId, Options};

/// The subsystem and one program.
pub(crate) struct Lab {
    pub(crate) iommufd: Iommufd,
    pub(crate) files: FileIds,
    pub(crate) client: Client,
    /// The program's `/dev/iommu`.
    pub(crate) file: FileId,
}

impl Lab {
    pub(crate) fn new() -> Lab {
        Lab::with(Options::default())
    }

    pub(crate) fn with(options: Options) -> Lab {
        let platform = Arc::<TestPlatform>::default() as Arc<dyn Platform>;
        let iommufd = Iommufd::new(platform, options, Accounts::new(false));
        let (files, client) = (FileIds::default(), Client::new(1));
        let mut lab = Lab { iommufd, files, client, file: FileId(0) };
        lab.file = lab.open(false);
        lab
    }

    /// One more context; `vfio` if through `/dev/vfio/vfio`.
    pub(crate) fn open(&mut self, vfio: bool) -> FileId {
        let file = self.files.allocate();
        self.iommufd.open(file, vfio);
        file
    }

    /// `ioctl` with an argument.
    pub(crate) fn ioctl(&mut self, request: u32, arg: u64) -> Result<Reply, Errno> {
        self.ioctl_on(self.file, request, arg)
    }

    pub(crate) fn ioctl_on(&mut self, file: FileId, request: u32, arg: u64) -> Result<Reply, Errno> {
        let mut call = Call { caller: &self.client, files: &mut self.files };
        self.iommufd.ioctl(file, request, arg, &mut call)
    }

    /// The same by another program.
    pub(crate) fn ioctl_as(&mut self, client: &Client, request: u32, arg: u64) -> Result<Reply, Errno> {
        let mut call = Call { caller: client, files: &mut self.files };
        self.iommufd.ioctl(self.file, request, arg, &mut call)
    }

    /// A command with a structure whose size is filled in; what it is then.
    pub(crate) fn run<T: Command>(&mut self, command: T) -> Result<T, Errno> {
        self.run_on(self.file, command)
    }

    pub(crate) fn run_on<T: Command>(&mut self, file: FileId, command: T) -> Result<T, Errno> {
        let arg = put(&self.client, command);
        self.ioctl_on(file, T::REQUEST, arg)?;
        Ok(self.client.get(arg))
    }

    /// The same by another program.
    pub(crate) fn run_as<T: Command>(&mut self, client: &Client, command: T) -> Result<T, Errno> {
        let arg = put(client, command);
        self.ioctl_as(client, T::REQUEST, arg)?;
        Ok(client.get(arg))
    }

    /// A new IOAS.
    pub(crate) fn ioas(&mut self) -> u32 {
        self.run(IoasAlloc::default()).unwrap().out_ioas_id
    }

    /// The program's context.
    pub(crate) fn context(&mut self) -> &mut Context {
        let id = self.iommufd.context(self.file).unwrap();
        self.iommufd.contexts.get_mut(&id).unwrap()
    }
}

/// Puts a command where the program's arguments are, with its size.
pub(crate) fn put<T: Command>(client: &Client, command: T) -> u64 {
    let mut bytes = command.as_bytes().to_vec();
    let size = (bytes.len() as u32).to_ne_bytes();
    bytes[..4].copy_from_slice(&size);
    client.put_bytes(&bytes)
}

/// An IOAS without restrictions: pages of 4 KiB, all IOVAs.
pub(crate) fn domain() -> DomainProperties {
    DomainProperties { page_sizes: 1 << 12, aperture: 0..=u64::MAX, log: None, coherent: true, force_writeable: false }
}

impl Lab {
    /// A domain, which nothing else knows of, begins to use an IOAS.
    pub(crate) fn add_domain(&mut self, number: u32, ioas: u32, domain: &DomainProperties) -> Result<(), Errno> {
        let (ioas, backing) = self.context().ioas_and_backing(ioas)?;
        ioas.add_domain(ObjectId(number), domain, backing)
    }

    pub(crate) fn remove_domain(&mut self, number: u32, ioas: u32) {
        let (ioas, backing) = self.context().ioas_and_backing(ioas).unwrap();
        ioas.remove_domain(ObjectId(number), backing);
    }

    /// Reserves a range for nobody.
    pub(crate) fn reserve(&mut self, ioas: u32, first: u64, last: u64) -> Result<(), Errno> {
        let (ioas, backing) = self.context().ioas_and_backing(ioas)?;
        ioas.reserve(Owner::Nobody, first, last, backing)
    }

    /// `IOAS_MAP`; the IOVA.
    pub(crate) fn map(&mut self, ioas: u32, flags: u32, va: u64, length: u64, iova: u64) -> Result<u64, Errno> {
        let map = IoasMap { ioas_id: ioas, flags, user_va: va, length, iova, ..IoasMap::default() };
        self.run(map).map(|done| done.iova)
    }

    /// `IOAS_UNMAP`; the bytes removed.
    pub(crate) fn unmap(&mut self, ioas: u32, iova: u64, length: u64) -> Result<u64, Errno> {
        let unmap = IoasUnmap { ioas_id: ioas, iova, length, ..IoasUnmap::default() };
        self.run(unmap).map(|done| done.length)
    }

    /// `IOAS_COPY`; the IOVA.
    pub(crate) fn copy(
        &mut self,
        (from, src_iova): (u32, u64),
        (to, dst_iova): (u32, u64),
        flags: u32,
        length: u64,
    ) -> Result<u64, Errno> {
        let copy =
            IoasCopy { src_ioas_id: from, dst_ioas_id: to, src_iova, dst_iova, flags, length, ..IoasCopy::default() };
        self.run(copy).map(|done| done.dst_iova)
    }

    /// Areas of an IOAS: first, last.
    pub(crate) fn areas(&mut self, ioas: u32) -> Vec<(u64, u64)> {
        let space = Arc::clone(self.context().ioas(ioas).unwrap().space());
        let mut areas = Vec::new();
        let mut next = Some(0);
        while let Some(area) = next.and_then(|at| space.at_or_after(at)) {
            areas.push((area.first, area.last));
            next = area.last.checked_add(1);
        }
        areas
    }

    /// What a device reads at an IOVA: 8 bytes.
    pub(crate) fn dma_read(&mut self, ioas: u32, iova: u64) -> Option<u64> {
        let space = Arc::clone(self.context().ioas(ioas).unwrap().space());
        let requester = Requester::new();
        requester.attach(Some(space.into()));
        requester.set_bus_master(true);
        let mut bytes = [0; 8];
        requester.session().read(iova, &mut bytes).ok().map(|()| u64::from_le_bytes(bytes))
    }

    /// Pages counted with the program, its user, and as pinned.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        self.counts_of(&self.client)
    }

    pub(crate) fn counts_of(&self, client: &Client) -> (u64, u64, u64) {
        let accounts = &self.iommufd.accounts;
        (accounts.pages(client.process), accounts.user_pages(client.user.get()), accounts.pinned(client.process))
    }
}
