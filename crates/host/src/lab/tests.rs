// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
use super::*;

fn complaint(text: &str) -> String {
    Lab::parse("a.toml", text).expect_err(text).to_string()
}

#[test]
fn a_file_and_an_argument_say_the_same() {
    let lab =
        Lab::parse("a.toml", "[[device]]\nmodel = \"nvme\"\naddr = \"02:00.0\"\nsize = \"64M\"\nqueues = 4\n").unwrap();
    let mut other = Lab::default();
    other.add_device("nvme,addr=02:00.0,size=64M,queues=4").unwrap();
    assert_eq!(lab.devices[0].model_without_place(), other.devices[0].model_without_place());
    assert_eq!(lab.devices[0].address, other.devices[0].address);
}

impl DeviceSpec {
    fn model_without_place(&self) -> Model {
        let mut model = self.model.clone();
        if let Model::Nvme(nvme) = &mut model {
            nvme.disk.place = Place::argument("");
        }
        model
    }
}

#[test]
fn the_iommu_s_memory_has_a_limit() {
    let limit = |text: &str| Lab::parse("a.toml", text).unwrap().iommu.memory_limit;
    assert_eq!((limit("[iommu]\n"), limit("[iommu]\nmemory_limit = \"64M\"\n")), (4 << 30, 64 << 20));
    assert!(complaint("[iommu]\nmemory_limit = \"much\"\n").contains("`much` is not a size"));
}

#[test]
fn complaints_name_line_and_column() {
    assert_eq!(
        complaint("[[device]]\nmodel = \"nvme\"\nfiel = \"x\"\n").split("; ").next(),
        Some("a.toml:3:8: unknown key `fiel` for an nvme device")
    );
    assert!(complaint("[[device]]\nmodel = \"floppy\"\n").starts_with("a.toml:2:9: unknown model `floppy`"));
    assert!(
        complaint("[[device]]\nmodel = \"nvme\"\naddr = \"01:00.9\"\n")
            .starts_with("a.toml:3:8: `addr`: `01:00.9` is not")
    );
    assert!(complaint("[[port]]\naddr = \"00:01.0\"\n").starts_with("a.toml:1:1: a port needs `bus`"));
    assert!(complaint("[iommu]\naddress_width = 99\n").starts_with("a.toml:2:17: "));
    assert!(complaint("x = 1\n").starts_with("a.toml:1:1: `x` stands outside"));
    assert!(complaint("[iommu\n").starts_with("a.toml:1:"));
    assert!(complaint("[disks]\n").contains("unknown table `[disks]`"));
}

#[test]
fn arguments_are_checked_like_files() {
    let mut lab = Lab::default();
    for (argument, part) in [
        ("nvme,addr=01:00.0,addr=02:00.0", "given twice"),
        ("nvme,size", "not key=value"),
        ("nvme,size=0", "multiple of the block size"),
        ("nvme,block_size=520", "512 or 4096"),
        ("nvme,queues=65", "1 to 64"),
        ("nvme,vfs=1", "at most `total_vfs`"),
        ("dsa,queues=0", "1 to 16"),
        ("dsa,max_transfer=3M", "a power of two from 4096 to 2147483648"),
        ("dsa,max_batch=1", "a power of two from 2 to 32768"),
        ("dsa,size=1G", "unknown key `size` for a dsa device"),
        ("", "unknown model ``"),
    ] {
        let error = lab.add_device(argument).expect_err(argument).to_string();
        assert!(error.contains(part) && error.starts_with("--device "), "{error}");
    }
    assert!(lab.devices.is_empty());
}

#[test]
fn an_accelerator() {
    let usual = models::dsa::Config::default();
    let mut lab = Lab::default();
    lab.add_device("dsa").unwrap();
    lab.add_device("dsa,queues=2,entries=32,engines=1,max_transfer=2M,max_batch=32,operations=on,handles=on").unwrap();
    let configs: Vec<_> = lab.devices.iter().map(|device| device.model.clone()).collect();
    let small = models::dsa::Config {
        queues: 2,
        entries: 32,
        engines: 1,
        max_transfer: 21,
        max_batch: 5,
        operations: true,
        handles: true,
        ..usual
    };
    assert_eq!(configs, [Model::Dsa(usual), Model::Dsa(small)]);
}
