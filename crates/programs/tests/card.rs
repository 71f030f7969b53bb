// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A card of two functions that can only be reset together, given to QEMU and
//! to DPDK: who gets it, and whose resets reach the bus (vfio-hot-reset.md).

use std::ffi::OsString;
use std::time::Duration;

use programs::{Guest, GuestReport, Live, Monitor, Outcome, Vfuse, Way};

const PORT: &str = "pcie-root-port,id=rp0,x-speed=5,x-width=1";
const FIRST: &str = "vfio-pci,host=0000:01:00.0";
const SECOND: &str = "vfio-pci,host=0000:01:00.1";

/// One IOMMU group for both functions, or one each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Groups {
    One,
    Two,
}

/// A lab with the card: an NVMe controller and a DMA engine.
fn card(groups: Groups) -> Vfuse {
    let acs = groups == Groups::Two;
    let device =
        |n, model| format!("[[device]]\nmodel = \"{model}\"\naddr = \"01:00.{n}\"\nacs = {acs}\nresets = \"none\"\n");
    let lab = ["[vfio]\nunlimited_memlock = true\n", &device(0, "nvme"), &device(1, "ioat")].concat();
    let vfuse = Vfuse::new(Way::RootNamespaces).lab(&lab).limit(Duration::from_secs(300)).traced();
    let runtime = vfuse.place.path("").display().to_string();
    let control = vfuse.place.path("lab.sock").display().to_string();
    vfuse.env("XDG_RUNTIME_DIR", &runtime).options(["--control", &control])
}

/// A QEMU with these devices that never runs its guest, as a line of shell.
fn qemu(devices: &[&str]) -> String {
    let mut guest = Guest::from_disk().with(["-S"]);
    for device in devices {
        guest = guest.with(["-device", device]);
    }
    let line = guest.program().join(&OsString::from(" "));
    // It has no serial line, and a reset does not end it.
    line.to_string_lossy().replace("stdio", "null").replace(" -no-reboot", "")
}

/// One that says how far it got by its exit status: 0 if it could start.
fn passing_qemu(devices: &[&str]) -> String {
    let commands = r#"{"execute":"qmp_capabilities"}{"execute":"quit"}"#;
    format!("echo '{commands}' | {} -qmp stdio", qemu(devices))
}

/// One that stays, with a monitor at `qmp.sock`.
fn staying_qemu(devices: &[&str]) -> String {
    format!("{} -qmp unix:qmp.sock,server=on,wait=off", qemu(devices))
}

const DPDK: &str = "dpdk-test -l 0 --no-telemetry --no-huge -m 64 --log-level=lib.eal:debug -a 0000:01:00.1";

/// Runs `first` in the background; once it is up runs `second`, which is done
/// when it has told its status. Returns that with all that was printed.
#[track_caller]
fn together(groups: Groups, first: &str, up: impl FnMut(&Live) -> bool, second: &str) -> (bool, String, Vfuse) {
    let vfuse = card(groups);
    let script = format!(
        "mkfifo in; exec 3<> in; ({first}) < in & until [ -e go ]; do sleep 0.05; done; \
         ({second}) < /dev/null; echo second=$?; until [ -e end ]; do sleep 0.05; done; kill $!; wait"
    );
    let mut live = vfuse.start(["sh", "-c", &script]);
    live.wait_for("the first program", up);
    let _ = vfuse.place.write("go", b"");
    live.says("second=");
    let text = live.text();
    let _ = vfuse.place.write("end", b"");
    live.end();
    (text.contains("second=0"), text, vfuse)
}

fn qemu_is_up(live: &Live) -> bool {
    live.beside("qmp.sock").is_some_and(|socket| Monitor::connect(&socket).is_some())
}

fn dpdk_is_up(live: &Live) -> bool {
    live.text().contains("RTE>>")
}

/// A group has one user: with the functions in one group the second program is
/// refused, with two groups both run, whoever comes first (API-035).
#[test]
fn two_programs_share_a_card_by_its_groups() {
    let dpdk = format!("{DPDK} version_autotest");
    for _ in 0..2 {
        for (groups, both) in [(Groups::One, false), (Groups::Two, true)] {
            let (started, text, _) = together(groups, &staying_qemu(&[FIRST]), qemu_is_up, &passing_qemu(&[SECOND]));
            assert_eq!((started, text.contains("busy")), (both, !both), "two QEMUs, {groups:?}:\n{text}");
            let (_, text, _) = together(groups, &staying_qemu(&[FIRST]), qemu_is_up, &dpdk);
            let probed = text.contains("ioat_dmadev_probe(): Init 0000:01:00.1");
            assert_eq!(probed, both, "QEMU, then DPDK, {groups:?}:\n{text}");
            let (started, text, _) = together(groups, DPDK, dpdk_is_up, &passing_qemu(&[FIRST]));
            assert_eq!((started, text.contains("busy")), (both, !both), "DPDK, then QEMU, {groups:?}:\n{text}");
        }
    }
}

/// HOT-047, HOT-049, HOT-050: a machine that has both functions resets them
/// together, whether they are in one group or in two, by groups or by an
/// iommufd.
#[test]
fn a_machine_with_both_functions_resets_them_together() {
    let by_iommufd = |device| format!("{device},iommufd=fd0");
    for groups in [Groups::One, Groups::Two] {
        for iommufd in [false, true] {
            let vfuse = card(groups);
            let machine = match iommufd {
                false => staying_qemu(&[FIRST, SECOND]),
                true => {
                    let machine = staying_qemu(&[&by_iommufd(FIRST), &by_iommufd(SECOND)]);
                    format!("{machine} -object iommufd,id=fd0")
                }
            };
            let mut live = vfuse.start(["sh", "-c", &format!("exec {machine}")]);
            live.wait_for("a monitor", qemu_is_up);
            let mut monitor = Monitor::connect(&vfuse.place.path("qmp.sock")).expect("it listened just now");
            let before = vfuse.events("vfio.hot_reset");
            monitor.run("system_reset");
            // Done when the monitor answers the next command.
            live.wait_for("a hot reset", |_| vfuse.events("vfio.hot_reset") > before);
            assert_eq!(vfuse.events("vfio.bind_iommufd") > 0, iommufd, "by its node or not");
            monitor.run("quit");
            live.end();
        }
    }
}

/// What a guest does that resets the link above its device ten times.
const RESETS: &str = "
    device=$(readlink -f /sys/class/nvme/nvme0/device)
    for i in 1 2 3 4 5 6 7 8 9 10; do
        echo 1 > $(dirname $device)/reset_subordinate || exit 1
        dd if=/dev/nvme0n1 of=/dev/null bs=4k count=1 2> /dev/null || exit 2
    done
    echo done=yes
";

fn guest_resets(vfuse: Vfuse) -> (Vfuse, Outcome) {
    let guest = Guest::new(&vfuse.place, RESETS);
    let guest = guest.with(["-device", PORT, "-device", &format!("{FIRST},bus=rp0")]);
    let outcome = vfuse.run(guest.program());
    assert_eq!(GuestReport::of(&outcome).value("done"), "yes");
    (vfuse, outcome)
}

/// HOT-048: the guest's reset of a link is a hot reset at the host if QEMU has
/// all functions of the bus: here they are in its group.
#[test]
fn a_guests_bus_reset_is_a_hot_reset_if_all_is_owned() {
    let (vfuse, _) = guest_resets(card(Groups::One));
    let count = vfuse.events("vfio.hot_reset");
    assert!(count >= 10, "{count}");
}

/// HOT-025, HOT-044, HOT-048: with the sibling in a group that QEMU does not
/// have nothing is reset; when QEMU has closed its function, both are free, and
/// the bus is reset once.
#[test]
fn a_guests_bus_reset_does_not_reach_the_functions_of_others() {
    let (vfuse, outcome) = guest_resets(card(Groups::Two));
    assert_eq!(vfuse.events("vfio.hot_reset"), 1);
    outcome.said("depends on group").said("which is not owned");
}
