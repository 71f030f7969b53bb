// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Names of calls and requests, for events that people read.

use std::fmt;

/// The name of an ioctl request; what a number means twice over is said twice.
pub(crate) struct Request(pub(crate) u32);

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            0x3b64 => "VFIO_GET_API_VERSION",
            0x3b65 => "VFIO_CHECK_EXTENSION",
            0x3b66 => "VFIO_SET_IOMMU",
            0x3b67 => "VFIO_GROUP_GET_STATUS",
            0x3b68 => "VFIO_GROUP_SET_CONTAINER",
            0x3b69 => "VFIO_GROUP_UNSET_CONTAINER",
            0x3b6a => "VFIO_GROUP_GET_DEVICE_FD",
            0x3b6b => "VFIO_DEVICE_GET_INFO",
            0x3b6c => "VFIO_DEVICE_GET_REGION_INFO",
            0x3b6d => "VFIO_DEVICE_GET_IRQ_INFO",
            0x3b6e => "VFIO_DEVICE_SET_IRQS",
            0x3b6f => "VFIO_DEVICE_RESET",
            0x3b70 => "VFIO_IOMMU_GET_INFO/VFIO_DEVICE_GET_PCI_HOT_RESET_INFO",
            0x3b71 => "VFIO_IOMMU_MAP_DMA/VFIO_DEVICE_PCI_HOT_RESET",
            0x3b72 => "VFIO_IOMMU_UNMAP_DMA/VFIO_DEVICE_QUERY_GFX_PLANE",
            0x3b73 => "VFIO_IOMMU_ENABLE/VFIO_DEVICE_GET_GFX_DMABUF",
            0x3b74 => "VFIO_IOMMU_DISABLE/VFIO_DEVICE_IOEVENTFD",
            0x3b75 => "VFIO_IOMMU_DIRTY_PAGES/VFIO_DEVICE_FEATURE",
            0x3b76 => "VFIO_DEVICE_BIND_IOMMUFD",
            0x3b77 => "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
            0x3b78 => "VFIO_DEVICE_DETACH_IOMMUFD_PT",
            0x3b79 => "VFIO_MIG_GET_PRECOPY_INFO",
            0x3b80 => "IOMMU_DESTROY",
            0x3b81 => "IOMMU_IOAS_ALLOC",
            0x3b82 => "IOMMU_IOAS_ALLOW_IOVAS",
            0x3b83 => "IOMMU_IOAS_COPY",
            0x3b84 => "IOMMU_IOAS_IOVA_RANGES",
            0x3b85 => "IOMMU_IOAS_MAP",
            0x3b86 => "IOMMU_IOAS_UNMAP",
            0x3b87 => "IOMMU_OPTION",
            0x3b88 => "IOMMU_VFIO_IOAS",
            0x3b89 => "IOMMU_HWPT_ALLOC",
            0x3b8a => "IOMMU_GET_HW_INFO",
            0x3b8b => "IOMMU_HWPT_SET_DIRTY_TRACKING",
            0x3b8c => "IOMMU_HWPT_GET_DIRTY_BITMAP",
            0x3b8d => "IOMMU_HWPT_INVALIDATE",
            0x3b8e => "IOMMU_FAULT_QUEUE_ALLOC",
            0x3b8f => "IOMMU_IOAS_MAP_FILE",
            0x3b90 => "IOMMU_VIOMMU_ALLOC",
            0x3b91 => "IOMMU_VDEVICE_ALLOC",
            0x3b92 => "IOMMU_IOAS_CHANGE_PROCESS",
            0x3b93 => "IOMMU_VEVENTQ_ALLOC",
            0x3b94 => "IOMMU_HW_QUEUE_ALLOC",
            other => return write!(f, "{other:#x}"),
        };
        f.write_str(name)
    }
}

/// The result of a call as `strace` shows it.
pub(crate) struct Shown(pub(crate) Result<u64, uapi::Errno>);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Ok(value) => write!(f, "{}", value as i64),
            Err(errno) => write!(f, "-1 {errno}"),
        }
    }
}

/// The name of a system call that is answered here.
pub(crate) fn call_name(nr: i32) -> &'static str {
    match libc::c_long::from(nr) {
        libc::SYS_ioctl => "ioctl",
        libc::SYS_pread64 => "pread64",
        libc::SYS_pwrite64 => "pwrite64",
        libc::SYS_preadv => "preadv",
        libc::SYS_pwritev => "pwritev",
        libc::SYS_preadv2 => "preadv2",
        libc::SYS_pwritev2 => "pwritev2",
        libc::SYS_mmap => "mmap",
        libc::SYS_fallocate => "fallocate",
        libc::SYS_openat => "openat",
        libc::SYS_openat2 => "openat2",
        libc::SYS_write => "write",
        libc::SYS_newfstatat => "newfstatat",
        libc::SYS_statx => "statx",
        libc::SYS_faccessat => "faccessat",
        libc::SYS_faccessat2 => "faccessat2",
        libc::SYS_readlinkat => "readlinkat",
        libc::SYS_chdir => "chdir",
        libc::SYS_getcwd => "getcwd",
        libc::SYS_eventfd2 => "eventfd2",
        #[cfg(target_arch = "x86_64")]
        libc::SYS_open => "open",
        #[cfg(target_arch = "x86_64")]
        libc::SYS_creat => "creat",
        #[cfg(target_arch = "x86_64")]
        libc::SYS_stat => "stat",
        #[cfg(target_arch = "x86_64")]
        libc::SYS_lstat => "lstat",
        #[cfg(target_arch = "x86_64")]
        libc::SYS_access => "access",
        #[cfg(target_arch = "x86_64")]
        libc::SYS_readlink => "readlink",
        _ => "other",
    }
}
