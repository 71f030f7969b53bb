// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Commands of one kind that stand together in a queue: each has its own
//! status, and a command of another kind sees what was before it.

use iommu::{Mapping, Prot};
use models::nvme::LbaSize;
use models::nvme::spec::{Command, NvmOpcode, Status};
use models::testing::nvme::blocks_command;
use models::testing::{Access, DiskCalls, TestMemory};

use crate::fixture::{DISK, Fixture, MEMORY, check, fixture_on};

/// Where a second memory is mapped, behind the first.
const FAR: u64 = MEMORY as u64;

/// A controller with a queue of 64, in memory reached one way, with another
/// megabyte reached the other way at [`FAR`].
fn mixed(remote: bool) -> (Fixture, std::sync::Arc<TestMemory>) {
    let mut fixture = fixture_on(Access::Mapped, LbaSize::B512, TestMemory::new(MEMORY, remote));
    let far = TestMemory::new(1 << 20, !remote);
    let prot = Prot::READ | Prot::WRITE;
    let mapping = Mapping { first: FAR, last: FAR + 0xfffff, prot, memory: far.clone(), offset: 0, tag: 0 };
    fixture.driver.machine.space.map(mapping).unwrap();
    fixture.driver.enable(32).unwrap();
    fixture.driver.create_queue_pair(1, 64, Some(1)).unwrap();
    (fixture, far)
}

/// The statuses with which commands end that are there at once, in order.
fn run(fixture: &mut Fixture, commands: &[Command]) -> Vec<Status> {
    let ids: Vec<u16> = commands.iter().map(|command| fixture.driver.put(1, *command).unwrap()).collect();
    fixture.driver.ring(1);
    fixture.driver.machine.run();
    let completions = fixture.driver.reap(1);
    assert_eq!(completions.iter().map(|completion| completion.cid.get()).collect::<Vec<_>>(), ids);
    let heads = completions.iter().map(|completion| completion.sq_head.get());
    assert!(heads.clone().zip(heads.skip(1)).all(|(a, b)| b == (a + 1) % 64), "the head moves by one");
    completions.iter().inspect(|completion| check(completion)).map(|completion| completion.status()).collect()
}

fn blocks(opcode: NvmOpcode, slba: u64, count: u32, iova: u64) -> Command {
    let second = (iova | 0xfff) + 1;
    Command { prp1: iova.into(), prp2: second.into(), ..blocks_command(opcode, 1, slba, count) }
}

#[test]
fn a_fault_in_the_middle_hurts_nobody_else() {
    for remote in [false, true] {
        let (mut fixture, far) = mixed(remote);
        let content: Vec<u8> = (0..DISK).map(|at| (at / 512) as u8).collect();
        fixture.disk.set(0, &content);
        let iova = fixture.driver.alloc(1 << 20).unwrap();
        let end = FAR + (1 << 20);
        let read = |slba, count, iova| blocks(NvmOpcode::Read, slba, count, iova);
        let commands = [
            read(10, 8, iova),
            read(20, 8, end),                 // Not mapped.
            read(30, 1, FAR),                 // In the other memory.
            read(DISK as u64 / 512, 1, iova), // Behind the disk.
            read(40, 9, end - 4096),          // Only its first page is mapped.
            read(50, 8, iova + 2),            // No dword.
            Command { prp2: 4.into(), ..read(60, 16, iova + 8192) },
            Command { nsid: 1.into(), opcode: NvmOpcode::Read.raw(), flags: 1, ..read(70, 1, iova) },
            read(80, 15, FAR + 4096 + 512),
            read(4, 1, iova + 12288),
        ];
        let want = [
            Status::SUCCESS,
            Status::DATA_TRANSFER_ERROR,
            Status::SUCCESS,
            Status::LBA_OUT_OF_RANGE,
            Status::DATA_TRANSFER_ERROR,
            Status::INVALID_PRP_OFFSET,
            Status::INVALID_PRP_OFFSET,
            Status::INVALID_FIELD,
            Status::SUCCESS,
            Status::SUCCESS,
        ];
        assert_eq!(run(&mut fixture, &commands), want);
        assert_eq!(fixture.bytes(iova, 4096), content[10 * 512..18 * 512]);
        assert_eq!(fixture.bytes(iova + 12288, 512), [4; 512]);
        assert_eq!(fixture.bytes(iova + 12800, 512), [0; 512]);
        let mut seen = vec![0; 8192];
        far.get(0, &mut seen[..512]);
        assert_eq!(seen[..512], [30; 512]);
        far.get(4096, &mut seen);
        assert_eq!(seen[..512], [0; 512]);
        assert!(seen[512..] == content[80 * 512..95 * 512]);

        let writes: Vec<Command> = commands.iter().map(|read| Command { opcode: 1, ..*read }).collect();
        fixture.disk.set(0, &vec![0xff; DISK]);
        assert_eq!(run(&mut fixture, &writes), want);
        assert_eq!(fixture.disk.get(10 * 512..18 * 512), content[10 * 512..18 * 512]);
        assert_eq!(fixture.disk.get(30 * 512..31 * 512), [30; 512]);
        assert_eq!(fixture.disk.get(80 * 512..95 * 512), content[80 * 512..95 * 512]);
        for untouched in [0, 9, 18, 20, 31, 40, 47, 50, 60, 70, 95] {
            assert_eq!(fixture.disk.get(untouched * 512..untouched * 512 + 1), [0xff], "block {untouched}");
        }
    }
}

/// The other memory goes while commands are waiting.
#[test]
fn memory_that_is_gone_hurts_nobody_else() {
    let (mut fixture, far) = mixed(false);
    let iova = fixture.driver.alloc(1 << 20).unwrap();
    far.kill();
    for opcode in [NvmOpcode::Read, NvmOpcode::Write] {
        let commands: Vec<Command> =
            (0..32).map(|i| blocks(opcode, i, 1, if i % 3 == 1 { FAR } else { iova } + i * 4096)).collect();
        let statuses = run(&mut fixture, &commands);
        for (i, status) in statuses.iter().enumerate() {
            assert_eq!(*status, if i % 3 == 1 { Status::DATA_TRANSFER_ERROR } else { Status::SUCCESS }, "{i}");
        }
    }
}

#[test]
fn other_commands_see_what_was_before_them() {
    for remote in [false, true] {
        let (mut fixture, _) = mixed(remote);
        let iova = fixture.driver.alloc(1 << 20).unwrap();
        fixture.fill(iova, 0x11, 4096);
        fixture.fill(iova + 4096, 0x22, 4096);
        let (one, two, to) = (iova, iova + 4096, iova + 8192);
        use NvmOpcode::{Compare, Flush, Read, Write, WriteZeroes};
        let commands = [
            blocks(Write, 0, 8, one),
            blocks(Write, 8, 8, one),
            blocks(Compare, 8, 8, one),
            blocks(Write, 8, 8, two),
            blocks(Compare, 8, 8, two),
            blocks(Read, 8, 8, to),
            blocks(WriteZeroes, 8, 4, 0),
            blocks(Read, 8, 8, to + 4096),
            blocks(Write, 8, 8, one),
            blocks(Flush, 0, 1, 0),
            blocks(Read, 8, 8, to + 8192),
            blocks(Compare, 8, 8, two),
        ];
        let mut want = [Status::SUCCESS; 12];
        want[11] = Status::COMPARE_FAILURE;
        assert_eq!(run(&mut fixture, &commands), want);
        assert_eq!(fixture.bytes(to, 4096), [0x22; 4096]);
        assert_eq!(fixture.bytes(to + 4096, 2048), [0; 2048]);
        assert_eq!(fixture.bytes(to + 4096 + 2048, 2048), [0x22; 2048]);
        assert_eq!(fixture.bytes(to + 8192, 4096), [0x11; 4096]);
    }
}

/// One flush for all that must be durable, and its failure is only theirs.
#[test]
fn a_batch_is_made_durable_at_once() {
    let (mut fixture, _) = mixed(true);
    let iova = fixture.driver.alloc(1 << 20).unwrap();
    let plain = blocks(NvmOpcode::Write, 0, 1, iova);
    let mut durable = plain;
    durable.cdw12.set(plain.cdw12.get() | 1 << 30);
    fixture.disk.take_calls();
    assert_eq!(run(&mut fixture, &[plain, durable, plain, durable]), [Status::SUCCESS; 4]);
    assert_eq!(fixture.disk.take_calls(), DiskCalls { writes: 4, flushes: 1, ..DiskCalls::default() });
    assert_eq!(run(&mut fixture, &[plain; 32]), [Status::SUCCESS; 32]);
    assert_eq!(fixture.disk.take_calls(), DiskCalls { writes: 32, ..DiskCalls::default() });
}

/// A batch ends after half a megabyte; what is longer goes alone.
#[test]
fn long_commands_go_alone() {
    for remote in [false, true] {
        let (mut fixture, _) = mixed(remote);
        let content: Vec<u8> = (0..DISK).map(|at| (at / 512 + at / 131_072) as u8).collect();
        fixture.disk.set(0, &content);
        let lengths = [4096_usize, 2 << 20, 512 << 10, 4096, 256 << 10, 256 << 10, 512];
        let (mut commands, mut places, mut at) = (Vec::new(), Vec::new(), 0);
        for len in lengths {
            let iova = fixture.driver.alloc(len as u64).unwrap();
            let command = blocks_command(NvmOpcode::Read, 1, at as u64 / 512, (len / 512) as u32);
            commands.push(fixture.driver.point(command, iova, len as u64).unwrap());
            places.push((at, iova, len));
            at += len;
        }
        assert_eq!(run(&mut fixture, &commands), [Status::SUCCESS; 7]);
        for (at, iova, len) in places {
            assert!(fixture.bytes(iova, len) == content[at..at + len], "{len} bytes");
        }
    }
}
