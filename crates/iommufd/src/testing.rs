// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A lab for this crate's tests: one program with `/dev/iommu` open.

use std::sync::Arc;

use caller::testing::{Client, TestPlatform};
use caller::{Accounts, FileId, FileIds, Platform, Reply};
use uapi::Errno;
use uapi::iommufd::{Command, IoasAlloc};

use crate::context::Context;
use crate::{Call, Iommufd, Options};

/// The subsystem and one program.
pub(crate) struct Lab {
    pub(crate) iommufd: Iommufd,
    pub(crate) files: FileIds,
    pub(crate) platform: Arc<TestPlatform>,
    pub(crate) client: Client,
    /// The program's `/dev/iommu`.
    pub(crate) file: FileId,
}

impl Lab {
    pub(crate) fn new() -> Lab {
        Lab::with(Options::default())
    }

    pub(crate) fn with(options: Options) -> Lab {
        let platform = Arc::<TestPlatform>::default();
        let accounts = Accounts::new(false);
        let iommufd = Iommufd::new(Arc::clone(&platform) as Arc<dyn Platform>, options, accounts);
        let (files, client) = (FileIds::default(), Client::new(1));
        let mut lab = Lab { iommufd, files, platform, client, file: FileId(0) };
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
