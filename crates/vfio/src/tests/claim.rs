// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Claims of reset ownership and what goes with them (extensions): every order
//! of opening, and that without a claim it is Linux's rules (HOT-013, HOT-025,
//! HOT-053).

use caller::{Caller, FileId, Reply};
use pci::{Address, FunctionSpec, Timing};
use uapi::Errno;
use uapi::vfio::device::{
    BIND_IOMMUFD, DependentDevice, FEATURE, GET_PCI_HOT_RESET_INFO, HotResetInfo, PCI_HOT_RESET, RESET,
};
use uapi::vfio::recovery::{BIND_CLAIM_RESET, DEV_ID_ADDRESS, SHARED_SPACES};
use zerocopy::IntoBytes;

use crate::Options;
use crate::testing::{Dummy, Lab};
use ::device::{Driver, Endpoint, Slot};

/// Three functions of one bus: two in group 7, the third in group 8.
fn lab() -> Lab {
    let mut lab = Lab::new(Options::default());
    for (function, group) in [(0, 7), (1, 7), (2, 8)] {
        lab.plug_in(group, &format!("0000:01:00.{function}"), Some(Driver::VfioPci));
    }
    lab
}

fn claim(lab: &mut Lab, cdev: FileId, iommufd: FileId) -> Result<u64, Errno> {
    let fd = lab.client.fd(iommufd) as u32;
    let arg = lab.client.put(&[16, BIND_CLAIM_RESET, fd, 0]);
    lab.ioctl(cdev, BIND_IOMMUFD, arg)
}

fn reset(lab: &mut Lab, file: FileId) -> Result<u64, Errno> {
    let arg = lab.client.put(&[12u32, 0, 0]);
    lab.ioctl(file, PCI_HOT_RESET, arg)
}

fn info(lab: &mut Lab, file: FileId) -> (u32, Vec<u32>) {
    let arg = lab.client.room(4096);
    lab.client.write(arg, [4096u32, 0, 0].as_bytes()).unwrap();
    lab.ioctl(file, GET_PCI_HOT_RESET_INFO, arg).unwrap();
    let head: HotResetInfo = lab.client.get(arg);
    let entry = |n: u32| lab.client.get::<DependentDevice>(arg + 12 + 8 * u64::from(n)).group_id;
    (head.flags, (0..head.count).map(entry).collect())
}

/// What somebody tries to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// X binds function 0 with a claim.
    Claim,
    /// X binds function 2.
    Own,
    /// Y, with a context of its own, binds function 2.
    Other,
    /// Y binds function 2 with a claim.
    OtherClaims,
    /// A user of groups opens function 2.
    Group,
    /// Function 2 gets a kernel driver.
    Kernel,
    /// Function 2 loses vfio-pci.
    Unbind,
}

/// The table of docs/extensions.md: what the second of two steps gives.
fn expected(first: Step, second: Step) -> Result<(), Errno> {
    use Step::*;
    match (first, second) {
        (Claim, Other | OtherClaims | Group | Kernel) => Err(Errno::EBUSY),
        (Other | OtherClaims | Group | Kernel, Claim) => Err(Errno::EBUSY),
        _ => Ok(()),
    }
}

struct Users {
    lab: Lab,
    x: FileId,
    y: FileId,
    zero: FileId,
}

impl Users {
    fn new() -> Users {
        let mut lab = lab();
        let [x, y] = [(); 2].map(|()| lab.open_iommufd());
        let zero = lab.open_cdev(0).unwrap();
        Users { lab, x, y, zero }
    }

    fn step(&mut self, step: Step) -> Result<(), Errno> {
        let third: Address = "0000:01:00.2".parse().unwrap();
        match step {
            Step::Claim => claim(&mut self.lab, self.zero, self.x).map(drop),
            Step::Own | Step::Other | Step::OtherClaims => {
                let cdev = self.lab.open_cdev(2)?;
                let context = if step == Step::Own { self.x } else { self.y };
                if step == Step::OtherClaims {
                    claim(&mut self.lab, cdev, context).map(drop)
                } else {
                    self.lab.bind_cdev(cdev, context).map(drop)
                }
            }
            Step::Group => {
                let (_, group) = self.lab.container_with(8, 3);
                self.lab.get_device_fd(group, "0000:01:00.2").map(drop)
            }
            Step::Kernel => {
                let driver = Driver::Kernel("nvme".into());
                self.lab.vfio.check_bind(third, &driver, &self.lab.board)?;
                self.lab.bind("0000:01:00.2", Some(driver));
                Ok(())
            }
            Step::Unbind => {
                self.lab.bind("0000:01:00.2", None);
                Ok(())
            }
        }
    }
}

#[test]
fn every_order_of_opening() {
    use Step::*;
    for other in [Own, Other, OtherClaims, Group, Kernel, Unbind] {
        for order in [[Claim, other], [other, Claim]] {
            let mut users = Users::new();
            assert_eq!(users.step(order[0]), Ok(()), "{order:?}");
            assert_eq!(users.step(order[1]), expected(order[0], order[1]), "{order:?}");
            let claimed = order[0] == Claim || expected(order[0], Claim).is_ok();
            if claimed {
                assert_eq!(reset(&mut users.lab, users.zero), Ok(0), "{order:?}: it always works");
                assert_eq!(info(&mut users.lab, users.zero).0, 3, "{order:?}: all are owned");
            } else {
                if other == OtherClaims {
                    assert_eq!(users.lab.bind_cdev(users.zero, users.x), Err(Errno::EBUSY));
                    continue;
                }
                // Without a claim it is as on Linux.
                users.lab.bind_cdev(users.zero, users.x).unwrap();
                assert_eq!(reset(&mut users.lab, users.zero), Err(Errno::EINVAL), "{order:?}");
            }
        }
    }
}

/// A claim makes closed functions the claimer's; it ends with the device.
#[test]
fn a_claim_ends_with_its_device() {
    let mut users = Users::new();
    assert_eq!(users.step(Step::Claim), Ok(()));
    assert_eq!(info(&mut users.lab, users.zero).1[1..], [0, 0]);
    // The node may be opened, and bound when the claim is gone.
    let two = users.lab.open_cdev(2).unwrap();
    assert_eq!(users.lab.bind_cdev(two, users.y), Err(Errno::EBUSY));
    users.lab.release(users.zero);
    assert!(users.lab.bind_cdev(two, users.y).is_ok());
    // Who has not claimed anything is asked by Linux's rules.
    assert_eq!(reset(&mut users.lab, two), Err(Errno::EINVAL));
    users.zero = users.lab.open_cdev(0).unwrap();
    assert_eq!(users.step(Step::Claim), Err(Errno::EBUSY));
    assert_eq!(claim(&mut users.lab, two, users.y), Err(Errno::EINVAL), "bound already");
}

/// Nothing falls with a device that cannot be hot-reset.
#[test]
fn nothing_to_claim() {
    let mut lab = Lab::new(Options::default());
    lab.plug_in(7, "0000:00:09.0", Some(Driver::VfioPci));
    let (iommufd, cdev) = (lab.open_iommufd(), lab.open_cdev(0).unwrap());
    assert_eq!(claim(&mut lab, cdev, iommufd), Err(Errno::ENODEV));
    assert!(lab.bind_cdev(cdev, iommufd).is_ok());
}

/// Addresses of ids, and which ids share an address space.
#[test]
fn a_context_knows_its_devices() {
    let mut lab = lab();
    let (iommufd, other) = (lab.open_iommufd(), lab.open_iommufd());
    let cdevs = [0, 1, 2].map(|number| lab.open_cdev(number).unwrap());
    let ids = [cdevs[0], cdevs[1], cdevs[2]].map(|cdev| lab.bind_cdev(cdev, iommufd).unwrap());
    let ask = |lab: &mut Lab, words: [u32; 10]| {
        let arg = lab.client.put(&words);
        lab.ioctl(cdevs[0], FEATURE, arg).map(|_| lab.client.get::<[u32; 10]>(arg))
    };
    let get = 1 << 16;
    let mut words = [16, get | DEV_ID_ADDRESS, ids[2], 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(ask(&mut lab, words).map(|w| w[3].to_ne_bytes()), Ok([0, 0, 1, 2]));
    words[2] = 99;
    assert_eq!(ask(&mut lab, words), Err(Errno::ENOENT));
    words[0] = 15;
    assert_eq!(ask(&mut lab, words), Err(Errno::EINVAL));
    words[1] = 1 << 17 | DEV_ID_ADDRESS;
    assert_eq!(ask(&mut lab, words), Err(Errno::EINVAL));
    let mut words = [40, get | SHARED_SPACES, 2, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(ask(&mut lab, words), Err(Errno::ENOSPC));
    words[2] = 3;
    let answer = ask(&mut lab, words).unwrap();
    assert_eq!(answer[2..], [3, 0, ids[0], ids[0], ids[1], ids[0], ids[2], ids[2]]);
    words[3] = 1;
    assert_eq!(ask(&mut lab, words), Err(Errno::EINVAL));
    // A device of a group has no context to ask about.
    lab.release(cdevs[2]);
    let (_, group) = lab.container_with(8, 3);
    let device = lab.get_device_fd(group, "0000:01:00.2").unwrap();
    let arg = lab.client.put(&[16, get | DEV_ID_ADDRESS, 1, 0]);
    assert_eq!(lab.ioctl(device, FEATURE, arg), Err(Errno::ENOTTY));
    let _ = other;
}

/// ERR-076: while a device with a translation cache is reset its translations
/// are blocked, and nothing can be attached.
#[test]
fn attaching_during_a_reset() {
    for ats in [true, false] {
        let mut lab = Lab::new(Options::default());
        let at: Address = "0000:01:00.0".parse().unwrap();
        let spec = FunctionSpec { ats, flr: true, ..FunctionSpec::default() };
        lab.board.fabric.plug_auto(at, spec.clone()).unwrap();
        let endpoint = Some(Endpoint::new(Box::new(Dummy::new(spec).0)));
        lab.board.slots.insert(at, Slot { endpoint, driver: Some(Driver::VfioPci), ..Slot::default() });
        lab.vfio.driver_bound(at, &lab.board);
        let (iommufd, cdev) = (lab.open_iommufd(), lab.open_cdev(0).unwrap());
        lab.bind_cdev(cdev, iommufd).unwrap();
        let ioas = lab.ioas(iommufd);
        lab.attach(cdev, ioas, None).unwrap();
        lab.board.fabric.set_timing(at, Timing { ready: 1_000_000, link: 0 });
        let (vfio, mut cx) = lab.parts();
        assert!(matches!(vfio.ioctl(cdev, RESET, 0, &mut cx), Ok(Reply::Parked(_))));
        assert_eq!(lab.attach(cdev, ioas, None).is_err(), ats);
        if ats {
            assert_eq!(lab.attach(cdev, ioas, None), Err(Errno::EBUSY));
        }
        assert!(!lab.board.endpoint(at).unwrap().requester.is_bus_master());
    }
}
