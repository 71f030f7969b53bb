// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The subsystem as a program sees it, one file a topic.

mod args;
mod cdev;
mod cdev_reset;
mod claim;
mod compat;
mod container;
mod dirty;
mod group;
mod hostile;
mod info;
mod lifetime;
mod map;
mod model;
mod unmap;
mod vaddr;

use caller::{FileId, Reply};
use uapi::Errno;
use uapi::vfio::type1::{
    Bitmap, DIRTY_PAGES, DirtyBitmap, DirtyBitmapGet, DirtyFlags, DmaMap, DmaUnmap, MAP_DMA, UNMAP_DMA,
};
use zerocopy::IntoBytes;

use crate::Options;
use crate::testing::{Client, Lab};
use ::device::Driver;

/// Where the program of [`Type1Lab`] has memory that it may write.
const RAM: u64 = 0x7000_0000_0000;
/// How much; the pages exist when they are used.
const RAM_LEN: u64 = 0x0800_0000_0000;
/// Where it has memory that it may only read.
const ROM: u64 = 0x6000_0000_0000;
const ROM_LEN: u64 = 0x10_0000;

const READ: u32 = 1;
const WRITE: u32 = 2;
const RW: u32 = 3;
const VADDR: u32 = 4;
const BITMAP: u32 = 1;
const ALL: u32 = 2;
const PAGE: u64 = 4096;

/// A lab with a type1 container.
struct Type1Lab {
    lab: Lab,
    container: FileId,
    group: FileId,
}

impl Type1Lab {
    fn new(number: u64) -> Type1Lab {
        Type1Lab::with(number, Options::default())
    }

    fn with(number: u64, options: Options) -> Type1Lab {
        let mut lab = Lab::new(options);
        lab.add(7, "0000:01:00.0", Some(Driver::VfioPci));
        give_memory(&lab.client);
        let (container, group) = lab.container_with(7, number);
        Type1Lab { lab, container, group }
    }

    fn ioctl(&mut self, request: u32, arg: u64) -> Result<u64, Errno> {
        self.lab.ioctl(self.container, request, arg)
    }

    fn map(&mut self, flags: u32, vaddr: u64, iova: u64, size: u64) -> Result<(), Errno> {
        let arg = self.lab.client.put(&DmaMap { argsz: 32, flags, vaddr, iova, size });
        self.ioctl(MAP_DMA, arg).map(|_| ())
    }

    fn map_as(&mut self, client: &Client, flags: u32, vaddr: u64, iova: u64, size: u64) -> Result<Reply, Errno> {
        let arg = client.put(&DmaMap { argsz: 32, flags, vaddr, iova, size });
        self.lab.ioctl_as(client, self.container, MAP_DMA, arg)
    }

    /// The size on return, or the error; then size must be as it was.
    fn unmap(&mut self, flags: u32, iova: u64, size: u64) -> Result<u64, Errno> {
        let arg = self.lab.client.put(&DmaUnmap { argsz: 24, flags, iova, size });
        let result = self.ioctl(UNMAP_DMA, arg);
        let after = self.lab.client.get::<DmaUnmap>(arg);
        assert_eq!((after.argsz, after.flags, after.iova), (24, flags, iova));
        match result {
            Ok(value) => {
                assert_eq!(value, 0);
                Ok(after.size)
            }
            Err(errno) => {
                assert_eq!(after.size, size, "API-088");
                Err(errno)
            }
        }
    }

    /// UNMAP_DMA with a bitmap.
    fn unmap_report(&mut self, iova: u64, size: u64, bitmap: Bitmap) -> Result<u64, Errno> {
        let unmap = DmaUnmap { argsz: 48, flags: BITMAP, iova, size };
        let arg = self.lab.client.put_bytes(&[unmap.as_bytes(), bitmap.as_bytes()].concat());
        self.ioctl(UNMAP_DMA, arg).map(|_| self.lab.client.get::<DmaUnmap>(arg).size)
    }

    fn dirty(&mut self, flags: DirtyFlags) -> Result<u64, Errno> {
        let arg = self.lab.client.put(&DirtyBitmap { argsz: 8, flags: flags.bits() });
        self.ioctl(DIRTY_PAGES, arg)
    }

    fn report(&mut self, iova: u64, size: u64, bitmap: Bitmap) -> Result<u64, Errno> {
        let dirty = DirtyBitmap { argsz: 48, flags: DirtyFlags::GET_BITMAP.bits() };
        let get = DirtyBitmapGet { iova, size, bitmap };
        let arg = self.lab.client.put_bytes(&[dirty.as_bytes(), get.as_bytes()].concat());
        self.ioctl(DIRTY_PAGES, arg)
    }

    /// Reads 8 bytes as the device would.
    fn dma_read(&self, iova: u64) -> Option<u64> {
        let endpoint = self.lab.endpoint("0000:01:00.0");
        endpoint.requester.set_bus_master(true);
        let mut bytes = [0; 8];
        endpoint.requester.session().read(iova, &mut bytes).ok().map(|()| u64::from_le_bytes(bytes))
    }

    /// Writes 8 bytes as the device would; whether that worked.
    fn dma_write(&self, iova: u64, value: u64) -> bool {
        let endpoint = self.lab.endpoint("0000:01:00.0");
        endpoint.requester.set_bus_master(true);
        endpoint.requester.session().write(iova, &value.to_le_bytes()).is_ok()
    }
}

/// Gives a program the areas `RAM` and `ROM`.
fn give_memory(client: &Client) {
    client.memory.map(RAM, RAM_LEN, true);
    client.memory.map(ROM, ROM_LEN, false);
}
