// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU's user-space NVMe driver (`nvme://`), by qemu-io and qemu-img.

use std::fs;
use std::time::Duration;

use programs::{Place, TestDisk, Vfuse, Way, in_each_way};

const DISK: &str = "nvme://0000:01:00.0/1";
const OTHER: &str = "nvme://0000:02:00.0/1";

fn qemu_io(vfuse: &Vfuse, commands: &[&str]) -> programs::Outcome {
    let mut program = vec!["qemu-io", "-f", "raw"];
    program.extend(commands.iter().flat_map(|command| ["-c", command]));
    program.push(DISK);
    vfuse.run(program)
}

/// A run whose one disk is a file of this content.
fn with_file(way: Way, content: &[u8]) -> (Vfuse, std::path::PathBuf) {
    let vfuse = Vfuse::new(way);
    let file = vfuse.place.write("disk", content);
    let vfuse = vfuse.disk("01:00.0", &file);
    (vfuse, file)
}

in_each_way! {
    /// The first thing that anybody tries: the default lab.
    fn writes_and_reads_back(way) {
        let outcome = qemu_io(&Vfuse::new(way), &["write -P 0x5a 0 1M", "read -P 0x5a 0 1M"]);
        outcome.succeeded().said("wrote 1048576/1048576").said("read 1048576/1048576");
        assert!(!outcome.text.contains("verification failed"), "{}", outcome.text);
    }

    /// Lengths that need one PRP, two, a list, and several commands; a read of
    /// the wrong pattern is noticed.
    fn patterns_of_every_length(way) {
        let mut commands = Vec::new();
        for (i, length) in ["512", "4k", "4608", "8k", "68k", "128k", "1M", "3M"].iter().enumerate() {
            let (pattern, at) = (i + 1, i * 4);
            commands.push(format!("write -P {pattern} {at}M {length}"));
            commands.push(format!("read -P {pattern} {at}M {length}"));
        }
        commands.extend(["write -P 9 33554944 1536".to_owned(), "read -P 9 33554944 1536".to_owned()]);
        let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
        let vfuse = Vfuse::new(way);
        let outcome = qemu_io(&vfuse, &commands);
        assert!(!outcome.succeeded().text.contains("verification failed"), "{}", outcome.text);

        let wrong = qemu_io(&vfuse, &["write -P 1 0 4k", "read -P 2 0 4k"]);
        wrong.exited(1).said("Pattern verification failed");
    }

    /// API-272: the store to `unbind` waits until QEMU lets go, also when one
    /// that waits is killed; the disk works on meanwhile. Then the device is
    /// unbound.
    fn unbound_while_in_use(way) {
        let outcome = Vfuse::new(way).options(["--sysfs-writable"]).shell(&format!(
            "device=/sys/bus/pci/devices/0000:01:00.0
             drivers=/sys/bus/pci/drivers/vfio-pci
             mkfifo commands
             qemu-io -f raw {DISK} < commands > said &
             exec 3> commands
             echo 'write -P 7 0 64k' >&3
             while ! grep -q wrote said; do :; done
             sh -c \"echo 0000:01:00.0 > $drivers/unbind\" & waits=$!
             while test -e $device/driver; do :; done
             sh -c \"echo 0000:01:00.0 > $drivers/unbind\" & killed=$!
             sleep 0.1
             kill -KILL $killed
             ! wait $killed
             echo 'read -P 7 0 64k' >&3
             while ! grep -q read.65536 said; do :; done
             kill -0 $waits
             test -e /dev/vfio/1
             echo quit >&3
             wait $waits
             test ! -e /dev/vfio/1
             echo vfio-pci > $device/driver_override
             echo 0000:01:00.0 > $drivers/bind
             exec 3>&-
             qemu-io -f raw -c 'read -P 7 0 64k' {DISK} > again
             ! grep failed said again"
        ));
        outcome.succeeded();
    }

    /// A RAM disk begins as zeros; the end of the disk is its end.
    fn zeros_at_first_and_an_end(way) {
        let vfuse = Vfuse::new(way).device("nvme,addr=01:00.0,size=16M");
        qemu_io(&vfuse, &["read -P 0 0 16M", "length"]).succeeded().said("16 MiB");
        qemu_io(&vfuse, &["write 16M 4k"]).exited(1);
    }

    /// What is written lands in the file, and only there.
    fn file_has_what_was_written(way) {
        let (vfuse, file) = with_file(way, &vec![0x11; 8 << 20]);
        qemu_io(&vfuse, &["write -P 0xab 1M 64k", "flush"]).succeeded();
        let content = fs::read(file).expect("the disk's file");
        let (start, end) = (1 << 20, (1 << 20) + (64 << 10));
        assert_eq!(content.len(), 8 << 20);
        assert!(content[start..end].iter().all(|&byte| byte == 0xab), "the written range");
        assert!(content[..start].iter().chain(&content[end..]).all(|&byte| byte == 0x11), "everything else");
    }

    /// Discard and write zeroes of one range leave its neighbours alone.
    fn discards_and_writes_zeroes(way) {
        let (vfuse, file) = with_file(way, &vec![0x22; 8 << 20]);
        let outcome = qemu_io(&vfuse, &[
            "write -z 1M 128k", "read -P 0 1M 128k", "read -P 0x22 1179648 4k",
            "discard 2M 1M", "read -P 0x22 1044480 4k", "read -P 0x22 3M 4k",
        ]);
        assert!(!outcome.succeeded().text.contains("verification failed"), "{}", outcome.text);
        let content = fs::read(file).expect("the disk's file");
        assert!(content[1 << 20..(1 << 20) + (128 << 10)].iter().all(|&byte| byte == 0));
    }

    /// A whole image onto the disk and back: the same bytes.
    fn converts_and_compares(way) {
        let vfuse = Vfuse::new(way).device("nvme,addr=01:00.0,size=32M").locks_memory();
        let image = TestDisk::patterned(&vfuse.place, "image", 32 << 20);
        let outcome = vfuse.shell(&format!(
            "qemu-img convert -n -f raw -O raw {image} {DISK}
             qemu-img compare -f raw -F raw {image} {DISK}
             qemu-img convert -f raw -O raw {DISK} {image}.back
             cmp {image} {image}.back",
            image = image.path.display(),
        ));
        // The lab lives as long as its program: the disk of one shell is one disk.
        outcome.succeeded().said("Images are identical");
    }

    /// Reads and writes, one and many at a time.
    fn benches_at_depths(way) {
        let vfuse = Vfuse::new(way).device("nvme,addr=01:00.0,size=64M").locks_memory().limit(Duration::from_secs(120));
        for depth in [1, 4, 16, 64] {
            for write in ["", "-w"] {
                let outcome = vfuse.shell(&format!("qemu-img bench -f raw -c 2000 -d {depth} -s 4096 {write} {DISK}"));
                outcome.succeeded().said("Run completed");
            }
        }
    }

    /// Without the host's cache, QEMU switches the disk's own write cache off.
    fn without_the_write_cache(way) {
        let outcome = Vfuse::new(way).run(["qemu-io", "-f", "raw", "-t", "none", "-c", "write -P 7 0 64k", "-c", "read -P 7 0 64k", DISK]);
        outcome.succeeded().said("read 65536/65536");
    }

    /// Two controllers of one lab: a process each at the same time, then one
    /// process with both.
    fn two_controllers_at_once(way) {
        let place = Place::new();
        let vfuse = Vfuse::new(way)
            .device("nvme,addr=01:00.0,size=64M")
            .device("nvme,addr=02:00.0,size=64M,block_size=4096")
            .locks_memory();
        let image = TestDisk::patterned(&place, "image", 16 << 20);
        let outcome = vfuse.shell(&format!(
            "qemu-io -f raw -c 'write -P 1 0 32M' -c 'read -P 1 0 32M' {DISK} & one=$!
             qemu-io -f raw -c 'write -P 2 0 32M' -c 'read -P 2 0 32M' {OTHER} & two=$!
             wait $one
             wait $two
             qemu-io -f raw -c 'read -P 1 0 32M' {DISK}
             qemu-io -f raw -c 'read -P 2 0 32M' {OTHER}
             qemu-img convert -n -f raw -O raw {image} {DISK}
             qemu-img convert -n -f raw -O raw {DISK} {OTHER}
             qemu-img compare -f raw -F raw {DISK} {OTHER}",
            image = image.path.display(),
        ));
        outcome.succeeded().said("Images are identical");
        assert!(!outcome.text.contains("verification failed"), "{}", outcome.text);
    }

    /// A controller that somebody has is busy for the next one, and free again
    /// when he has gone.
    fn one_user_at_a_time(way) {
        let outcome = Vfuse::new(way).shell(&format!(
            "qemu-io -f raw -c 'sleep 1500' {DISK} & first=$!
             sleep 0.7
             qemu-io -f raw -c 'read 0 4k' {DISK} && exit 9
             wait $first
             qemu-io -f raw -c 'read 0 4k' {DISK}"
        ));
        outcome.succeeded().said("busy").said("read 4096/4096");
    }
}
