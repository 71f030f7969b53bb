// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Admin commands: queues, abort, format, and what is refused.

use models::nvme::spec::{AdminOpcode, Command, NvmOpcode, Status};
use models::testing::nvme::{blocks_command, command};

use crate::fixture::{DISK, check, ready};

const CREATE_CQ: AdminOpcode = AdminOpcode::CreateCompletionQueue;
const CREATE_SQ: AdminOpcode = AdminOpcode::CreateSubmissionQueue;
const DELETE_CQ: AdminOpcode = AdminOpcode::DeleteCompletionQueue;
const DELETE_SQ: AdminOpcode = AdminOpcode::DeleteSubmissionQueue;

#[test]
fn opcodes_that_are_not_offered_are_invalid() {
    let mut fixture = ready();
    for opcode in 0..=u8::MAX {
        if AdminOpcode::from_raw(opcode).is_none() {
            let status = fixture.status(0, Command { opcode, ..Command::default() });
            assert_eq!(status, Status::INVALID_OPCODE, "admin {opcode:#x}");
        }
        if NvmOpcode::from_raw(opcode).is_none() {
            let status = fixture.status(1, Command { opcode, nsid: 1.into(), ..Command::default() });
            assert_eq!(status, Status::INVALID_OPCODE, "NVM {opcode:#x}");
        }
    }
}

#[test]
fn fused_commands_and_scatter_gather_lists_are_invalid_fields() {
    let mut fixture = ready();
    for flags in [1, 2, 3, 0x40, 0x80, 0xc0] {
        let identify = Command { flags, cdw10: 1.into(), ..command(AdminOpcode::Identify) };
        assert_eq!(fixture.status(0, identify), Status::INVALID_FIELD, "admin {flags:#x}");
        let flush = Command { flags, ..blocks_command(NvmOpcode::Flush, 1, 0, 1) };
        assert_eq!(fixture.status(1, flush), Status::INVALID_FIELD, "NVM {flags:#x}");
    }
}

#[test]
fn creating_a_completion_queue_checks_each_field() {
    let mut fixture = ready();
    let base = fixture.driver.alloc(65536).unwrap();
    let mut create = |cdw10: u32, cdw11: u32, prp1: u64| {
        fixture.status(0, Command { cdw10: cdw10.into(), cdw11: cdw11.into(), prp1: prp1.into(), ..command(CREATE_CQ) })
    };
    let size = 31 << 16;
    for id in [0, 1, 65, 0xffff] {
        assert_eq!(create(size | id, 1, base), Status::INVALID_QUEUE_ID, "queue {id}");
    }
    for entries in [0, 4096, 0xffff] {
        assert_eq!(create(entries << 16 | 2, 1, base), Status::INVALID_QUEUE_SIZE, "{entries} + 1 entries");
    }
    assert_eq!(create(size | 2, 65 << 16 | 3, base), Status::INVALID_INTERRUPT_VECTOR);
    assert_eq!(create(size | 2, 0, base), Status::INVALID_FIELD, "not contiguous");
    for offset in [1, 8, 2048] {
        assert_eq!(create(size | 2, 1, base + offset), Status::INVALID_PRP_OFFSET, "offset {offset}");
    }
    assert_eq!(create(4095 << 16 | 2, 64 << 16 | 3, base), Status::SUCCESS);
    assert_eq!(create(size | 2, 1, base), Status::INVALID_QUEUE_ID, "created twice");
    assert_eq!(create(size | 64, 1, base), Status::SUCCESS);
}

#[test]
fn creating_a_submission_queue_checks_each_field() {
    let mut fixture = ready();
    let base = fixture.driver.alloc(4096 * 64).unwrap();
    let mut create = |cdw10: u32, cdw11: u32, prp1: u64| {
        fixture.status(0, Command { cdw10: cdw10.into(), cdw11: cdw11.into(), prp1: prp1.into(), ..command(CREATE_SQ) })
    };
    let (size, on_queue_1) = (31 << 16, 1 << 16 | 1);
    for id in [0, 1, 65, 0xffff] {
        assert_eq!(create(size | id, on_queue_1, base), Status::INVALID_QUEUE_ID, "queue {id}");
    }
    for id in [0, 65, 0xffff] {
        assert_eq!(create(size | 2, id << 16 | 1, base), Status::INVALID_QUEUE_ID, "completion queue {id}");
    }
    assert_eq!(create(size | 2, 2 << 16 | 1, base), Status::COMPLETION_QUEUE_INVALID);
    for entries in [0, 4096] {
        assert_eq!(create(entries << 16 | 2, on_queue_1, base), Status::INVALID_QUEUE_SIZE, "{entries} + 1");
    }
    assert_eq!(create(size | 2, 1 << 16, base), Status::INVALID_FIELD, "not contiguous");
    assert_eq!(create(size | 2, on_queue_1, base + 64), Status::INVALID_PRP_OFFSET);
    assert_eq!(create(4095 << 16 | 2, on_queue_1, base), Status::SUCCESS);
}

#[test]
fn queues_cannot_be_created_before_entry_sizes_are_set() {
    use models::nvme::LbaSize;
    use models::nvme::spec::Cc;
    let mut fixture = crate::fixture::fixture(models::testing::Access::Mapped, LbaSize::B512);
    fixture.driver.enable_with(32, Cc(1)).unwrap();
    let base = fixture.driver.alloc(4096).unwrap();
    let create = Command { cdw10: 0x1f_0001.into(), cdw11: 1.into(), prp1: base.into(), ..command(CREATE_CQ) };
    assert_eq!(fixture.status(0, create), Status::INVALID_QUEUE_SIZE);
    // They may be set later, too.
    fixture.driver.set_register(models::nvme::spec::Register::Cc, Cc::ENABLED.0);
    assert_eq!(fixture.status(0, create), Status::SUCCESS);
}

#[test]
fn deleting_queues_checks_order_and_ids() {
    let mut fixture = ready();
    for id in [0, 2, 65, 0xffff] {
        assert_eq!(fixture.admin(DELETE_SQ, id, 0), Status::INVALID_QUEUE_ID, "submission queue {id}");
        assert_eq!(fixture.admin(DELETE_CQ, id, 0), Status::INVALID_QUEUE_ID, "completion queue {id}");
    }
    assert_eq!(fixture.admin(DELETE_CQ, 1, 0), Status::INVALID_QUEUE_DELETION);
    assert_eq!(fixture.admin(DELETE_SQ, 1, 0), Status::SUCCESS);
    assert_eq!(fixture.admin(DELETE_SQ, 1, 0), Status::INVALID_QUEUE_ID);
    assert_eq!(fixture.admin(DELETE_CQ, 1, 0), Status::SUCCESS);
    assert_eq!(fixture.admin(DELETE_CQ, 1, 0), Status::INVALID_QUEUE_ID);
    fixture.driver.create_queue_pair(1, 2, None).unwrap();
    assert!(fixture.is_alive());
}

#[test]
fn abort_finds_event_requests_only() {
    let mut fixture = ready();
    let request = fixture.driver.submit(0, command(AdminOpcode::AsyncEventRequest)).unwrap();
    fixture.driver.machine.run();
    assert!(fixture.driver.reap(0).is_empty());

    let abort =
        |sq: u32, cid: u16| Command { cdw10: (sq | u32::from(cid) << 16).into(), ..command(AdminOpcode::Abort) };
    assert_eq!(fixture.driver.admin(abort(1, request)).unwrap(), 1, "another queue's");
    assert_eq!(fixture.driver.admin(abort(0, request ^ 0x100)).unwrap(), 1, "no such command");
    assert_eq!(fixture.status(0, abort(2, request)), Status::INVALID_FIELD, "no such queue");

    let cid = fixture.driver.submit(0, abort(0, request)).unwrap();
    fixture.driver.machine.run();
    let completions = fixture.driver.reap(0);
    completions.iter().for_each(check);
    let seen: Vec<_> = completions.iter().map(|c| (c.cid.get(), c.status(), c.dw0.get())).collect();
    assert_eq!(seen, [(request, Status::ABORT_REQUESTED, 0), (cid, Status::SUCCESS, 0)]);
    assert_eq!(fixture.driver.admin(abort(0, request)).unwrap(), 1, "aborted already");
}

#[test]
fn format_erases() {
    let mut fixture = ready();
    let format =
        |nsid: u32, value: u32| Command { nsid: nsid.into(), cdw10: value.into(), ..command(AdminOpcode::FormatNvm) };
    for (nsid, value, status) in [
        (0, 0, Status::INVALID_NAMESPACE),
        (2, 0, Status::INVALID_NAMESPACE),
        (1, 1, Status::INVALID_FORMAT),
        (1, 2 << 9, Status::INVALID_FIELD),
        (1, 1 << 5, Status::INVALID_FIELD),
    ] {
        fixture.disk.set(0, &[0x5a; 4096]);
        assert_eq!(fixture.status(0, format(nsid, value)), status, "{nsid:#x} {value:#x}");
        assert_eq!(fixture.disk.get(0..1), [0x5a]);
    }
    for (nsid, value) in [(1, 0), (1, 1 << 9), (u32::MAX, 0)] {
        fixture.disk.set(DISK - 1, &[0x5a]);
        assert_eq!(fixture.status(0, format(nsid, value)), Status::SUCCESS, "{nsid:#x} {value:#x}");
        assert_eq!(fixture.disk.get(DISK - 1..DISK), [0]);
    }
}
