// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `VFIO_IOMMU_GET_INFO`: page sizes, limits and IOVA ranges.

use caller::Caller;
use uapi::Errno;
use uapi::vfio::type1::{
    BITMAP_SIZE_MAX, CAP_DMA_AVAIL, CAP_IOVA_RANGE, CAP_MIGRATION, CapIovaRange, CapMigration, Info, InfoFlags,
};
use zerocopy::IntoBytes;

use super::{PAGE, PAGE_SIZES, Type1};
use crate::args::{self, InfoChain};

impl Type1 {
    pub(super) fn get_info(&self, arg: u64, caller: &dyn Caller) -> Result<(), Errno> {
        let mut info: Info = args::read(caller, arg, Info::MINSZ)?;
        let provided = info.argsz as usize;
        info.flags = (InfoFlags::PGSIZES | InfoFlags::CAPS).bits();
        info.iova_pgsizes = if self.groups == 0 { !(PAGE - 1) } else { PAGE_SIZES };

        let mut chain = InfoChain::new();
        let migration =
            CapMigration { pgsize_bitmap: PAGE, max_dirty_bitmap_size: BITMAP_SIZE_MAX, ..CapMigration::default() };
        chain.add(CAP_MIGRATION, 1, migration.as_bytes());
        chain.add(CAP_DMA_AVAIL, 1, self.available.as_bytes());
        if !self.ranges.is_empty() {
            let head = CapIovaRange { nr_iovas: self.ranges.len() as u32, reserved: 0 };
            let mut body = head.as_bytes().to_vec();
            body.extend_from_slice(self.ranges.as_bytes());
            chain.add(CAP_IOVA_RANGE, 1, &body);
        }
        (info.argsz, info.cap_offset) = chain.place(caller, arg, size_of::<Info>(), info.argsz)?;
        args::write_prefix(caller, arg, &info, provided)
    }
}
