// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A client that has the eight functions of a card open, each with its BAR
//! mapped eight times, and resets them together.
#![allow(unsafe_code)] // stores to mapped BARs

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result, bail, ensure};
use uapi::vfio::{container, device, group};

use crate::client::{HOT_RESET, Orders, ioctl, map, node};

const PAGE: usize = 4096;
const MAPPINGS: usize = 8;

/// Descriptors of the card, and pages of its BARs.
pub(crate) struct Card {
    _container: OwnedFd,
    group: OwnedFd,
    devices: Vec<OwnedFd>,
    pages: Vec<u64>,
}

impl Card {
    pub(crate) fn open() -> Result<Card> {
        let name = |function| format!("0000:01:00.{function}");
        let link = std::fs::read_link(format!("/sys/bus/pci/devices/{}/iommu_group", name(0))).context("no card")?;
        let number = link.file_name().and_then(|name| name.to_str()).context("no group")?;
        let container = node("/dev/vfio/vfio")?;
        let group = node(&format!("/dev/vfio/{number}"))?;
        let mut raw = container.as_raw_fd();
        ioctl(&group, group::SET_CONTAINER, (&raw mut raw) as u64).context("SET_CONTAINER")?;
        ioctl(&container, container::SET_IOMMU, container::extension::TYPE1_V2).context("SET_IOMMU")?;
        let (mut devices, mut pages) = (Vec::new(), Vec::new());
        for function in 0..8 {
            let name = CString::new(name(function))?;
            let fd = ioctl(&group, group::GET_DEVICE_FD, name.as_ptr() as u64).context("GET_DEVICE_FD")?;
            // SAFETY: the call has just made the descriptor for us alone.
            let device = unsafe { OwnedFd::from_raw_fd(fd) };
            let region = |index| {
                let argsz = size_of::<device::RegionInfo>() as u32;
                let mut info = device::RegionInfo { argsz, index, ..Default::default() };
                ioctl(&device, device::GET_REGION_INFO, (&raw mut info) as u64).context("GET_REGION_INFO")?;
                anyhow::Ok(info.offset)
            };
            let command = region(device::region_index::CONFIG)? + 4;
            let on = 6u16.to_le_bytes();
            // SAFETY: two bytes, which are valid.
            let done = unsafe { libc::pwrite64(device.as_raw_fd(), on.as_ptr().cast(), 2, command as i64) };
            ensure!(done == 2, "the command register: {}", std::io::Error::last_os_error());
            let bar = region(0)?;
            for _ in 0..MAPPINGS {
                pages.push(map(PAGE, libc::MAP_SHARED, device.as_raw_fd(), bar as i64)?);
            }
            devices.push(device);
        }
        Ok(Card { _container: container, group, devices, pages })
    }

    /// One reset; then every mapping is used again.
    fn reset(&self) -> Result<()> {
        let size = size_of::<device::HotReset>() as u32;
        let request: [u32; 4] = [size + 4, 0, 1, self.group.as_raw_fd() as u32];
        let device = self.devices.first().context("no device")?;
        ioctl(device, device::PCI_HOT_RESET, request.as_ptr() as u64).context("PCI_HOT_RESET")?;
        for page in &self.pages {
            // SAFETY: a page that was mapped above, for good.
            std::hint::black_box(unsafe { std::ptr::read_volatile(*page as *const u32) });
        }
        Ok(())
    }
}

impl Orders for Card {
    fn obey(&mut self, verb: &str, count: u64) -> Result<f64> {
        match verb {
            HOT_RESET => crate::timing::each(count, |_| self.reset()),
            _ => bail!("no order is called {verb}"),
        }
    }
}
