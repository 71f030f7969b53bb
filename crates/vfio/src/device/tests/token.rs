// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VF tokens and virtual functions: API-057 to API-061, API-198.

use caller::FileId;
use pci::{Address, FunctionSpec};
use uapi::Errno;
use uapi::vfio::device::{FEATURE, GET_IRQ_INFO, IrqInfo};
use zerocopy::IntoBytes;

use super::{ADDRESS, Rig, bind, spec};
use crate::Options;
use crate::testing::Dummy;

const TOKEN: &str = "14d63f20-8445-11ea-8900-1f9ce7d5650d";
const OTHER: &str = "14d63f20-8445-11ea-8900-1f9ce7d5650e";

/// An open PF, and its first VF with its group in the same container.
pub(super) struct VfRig {
    pub(super) rig: Rig,
    vf: Address,
    vf_group: FileId,
    vf_file: Option<FileId>,
}

fn set_token(rig: &mut Rig, token: &str) -> Result<u64, Errno> {
    let bytes: Vec<u8> = token.replace('-', "").as_bytes().chunks(2).map(hex).collect();
    let arg = rig.lab.client.put_bytes(&[[24_u32, 1 << 17].as_bytes(), &bytes].concat());
    rig.ioctl(FEATURE, arg)
}

fn hex(pair: &[u8]) -> u8 {
    u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()
}

fn unopened() -> VfRig {
    let mut rig = Rig::with(FunctionSpec { total_vfs: 2, acs: Some(0x1d), ..spec() }, Options::default());
    let (vf, vf_spec) = rig.lab.board.fabric.enable_vfs(ADDRESS, 1).unwrap().remove(0);
    bind(&mut rig.lab, vf, Dummy::new(vf_spec).0);
    let number = rig.lab.board.fabric.group(vf).unwrap();
    assert_ne!(Some(number), rig.lab.board.fabric.group(ADDRESS));
    let vf_group = rig.lab.open_group(number).unwrap();
    rig.lab.set_container(vf_group, rig.container).unwrap();
    VfRig { rig, vf, vf_group, vf_file: None }
}

/// With the VF open.
pub(super) fn vf_rig() -> VfRig {
    let mut vf = unopened();
    set_token(&mut vf.rig, TOKEN).unwrap();
    vf.vf_file = Some(vf.open(&format!(" vf_token={TOKEN}")).unwrap());
    vf
}

impl VfRig {
    fn open(&mut self, options: &str) -> Result<FileId, Errno> {
        let name = format!("{}{options}", self.vf);
        self.rig.lab.get_device_fd(self.vf_group, &name)
    }

    fn with<R>(&mut self, call: impl FnOnce(&mut Rig) -> R) -> R {
        let file = self.vf_file.unwrap();
        let pf = std::mem::replace(&mut self.rig.file, file);
        let result = call(&mut self.rig);
        self.rig.file = pf;
        result
    }

    pub(super) fn vf_cfg(&mut self, pos: u16, len: usize) -> u32 {
        self.with(|rig| rig.cfg(pos, len))
    }

    pub(super) fn vf_cfg_write(&mut self, pos: u16, len: usize, value: u32) {
        self.with(|rig| rig.cfg_write(pos, len, value));
    }

    pub(super) fn vf_read(&mut self, index: u32, pos: u64, len: u64) -> Result<usize, Errno> {
        self.with(|rig| rig.pread(index, pos, len).map(|bytes| bytes.len()))
    }
}

/// API-057, API-061, API-198
#[test]
fn a_vf_needs_its_pf_s_token() {
    let mut vf = unopened();
    for options in ["", &format!(" vf_token={TOKEN}"), " vf_token=00000000-0000-0000-0000-000000000000"] {
        assert_eq!(vf.open(options), Err(Errno::EACCES), "nobody knows the first one");
    }
    assert_eq!(set_token(&mut vf.rig, TOKEN), Ok(0));
    assert_eq!(vf.open(""), Err(Errno::EACCES));
    assert_eq!(vf.open(&format!(" vf_token={OTHER}")), Err(Errno::EACCES));
    assert!(vf.open(&format!(" vf_token={TOKEN}")).is_ok());
}

/// API-058
#[test]
fn a_vf_of_a_kernel_driver_s_pf_takes_none() {
    let mut vf = unopened();
    vf.rig.lab.release(vf.rig.file);
    vf.rig.lab.bind("0000:01:00.0", Some(::device::Driver::Kernel("nvme".into())));
    assert_eq!(vf.open(&format!(" vf_token={TOKEN}")), Err(Errno::EINVAL));
    assert!(vf.open("").is_ok());
}

/// API-059
#[test]
fn a_pf_with_users_needs_its_token() {
    let mut vf = unopened();
    let pf = |vf: &mut VfRig, options: &str| {
        let name = format!("{ADDRESS}{options}");
        vf.rig.lab.get_device_fd(vf.rig.group, &name)
    };
    // No users yet: what is given counts from now on.
    assert!(pf(&mut vf, &format!(" vf_token={TOKEN}")).is_ok());
    assert!(pf(&mut vf, "").is_ok());
    let user = vf.open(&format!(" vf_token={TOKEN}")).unwrap();
    assert_eq!(pf(&mut vf, "").map(|_| ()), Err(Errno::EACCES));
    assert_eq!(pf(&mut vf, &format!(" vf_token={OTHER}")).map(|_| ()), Err(Errno::EACCES));
    assert!(pf(&mut vf, &format!(" vf_token={TOKEN}")).is_ok());
    vf.rig.lab.release(user);
    assert!(pf(&mut vf, &format!(" vf_token={OTHER}")).is_ok());
    assert_eq!(vf.open(&format!(" vf_token={TOKEN}")), Err(Errno::EACCES));
}

/// API-060, API-050
#[test]
fn others_take_none() {
    let mut rig = Rig::new();
    let open = |rig: &mut Rig, options: &str| {
        let name = format!("{ADDRESS}{options}");
        rig.lab.get_device_fd(rig.group, &name).map(|_| ())
    };
    assert_eq!(open(&mut rig, &format!(" vf_token={TOKEN}")), Err(Errno::EINVAL));
    assert_eq!(open(&mut rig, " vf_token=1"), Err(Errno::EINVAL));
    assert_eq!(open(&mut rig, " "), Ok(()));
    let arg = rig.lab.client.put_bytes(&[[24_u32, 1 << 17].as_bytes(), &[0; 16]].concat());
    assert_eq!(rig.ioctl(FEATURE, arg), Err(Errno::ENOTTY));
}

/// API-050: what is wrong with the options is told before what is wrong with
/// the container.
#[test]
fn options_come_before_the_container() {
    let mut vf = unopened();
    let number = vf.rig.lab.board.fabric.group(ADDRESS).unwrap();
    vf.rig.lab.release(vf.rig.file);
    vf.rig.lab.release(vf.rig.group);
    let group = vf.rig.lab.open_group(number).unwrap();
    let open = |rig: &mut Rig, options: &str| rig.lab.get_device_fd(group, &format!("{ADDRESS}{options}")).map(|_| ());
    assert_eq!(open(&mut vf.rig, " nonsense"), Err(Errno::EINVAL));
    // The token is kept although the open fails.
    assert_eq!(open(&mut vf.rig, &format!(" vf_token={TOKEN}")), Err(Errno::EINVAL));
    assert!(vf.open(&format!(" vf_token={TOKEN}")).is_ok());
}

/// API-061: a new binding starts with a new token.
#[test]
fn unbinding_forgets_the_token() {
    let mut vf = unopened();
    set_token(&mut vf.rig, TOKEN).unwrap();
    vf.rig.lab.release(vf.rig.file);
    vf.rig.lab.vfio.driver_unbound(ADDRESS, &vf.rig.lab.board, &mut vf.rig.lab.iommufd);
    assert_eq!(vf.open(&format!(" vf_token={TOKEN}")), Err(Errno::EACCES));
}

/// API-234, API-178
#[test]
fn a_vf_shows_ids_and_no_pin() {
    let mut vf = vf_rig();
    let ids = vf.rig.lab.board.fabric.function(vf.vf).unwrap().spec().clone();
    assert_eq!(vf.vf_cfg(0, 4), u32::from(ids.device) << 16 | u32::from(ids.vendor));
    assert_eq!(vf.vf_cfg(0x3d, 1), 0);
    let count = vf.with(|rig| rig.call(GET_IRQ_INFO, &IrqInfo { argsz: 16, ..IrqInfo::default() })).unwrap().count;
    assert_eq!(count, 0);
    // Its BARs are the share that the PF gives it.
    assert_eq!(vf.with(|rig| rig.region(0)).unwrap().size, 0x4000);
    vf.vf_cfg_write(0x10, 4, u32::MAX);
    assert_eq!(vf.vf_cfg(0x10, 4), 0xffff_c004);
}
