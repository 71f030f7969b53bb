// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An accelerator that asks for pages, and a program that answers: the example
//! `paging`, however well it answers.

use programs::{Outcome, Vfuse, Way, example, in_each_way};

const FAULTS: &str = "[fault]\n";

fn paging(way: Way, fault: &str, options: &[&str]) -> Outcome {
    let vfuse = Vfuse::new(way).lab(&format!("[vfio]\nunlimited_memlock = true\n{fault}")).device("dsa,addr=01:00.0");
    let mut program = vec![vfuse.place.program(&example("paging")).into_os_string()];
    program.extend(options.iter().map(Into::into));
    let outcome = vfuse.run(&program);
    outcome.succeeded();
    outcome
}

in_each_way! {
    /// FAULT-1.2, FAULT-1.3: 32 MiB of which nothing is mapped.
    fn pages_on_demand(way) {
        let outcome = paging(way, FAULTS, &["--size", "32M", "--map", "64K"]);
        outcome.said("32 MiB filled and verified; 512 page requests, 512 answered");
        outcome.said("0 answers were not accepted, 0 descriptors ended early");
    }
}

in_each_way! {
    /// FAULT-1.1, FAULT-1.4, FAULT-1.5: the queue's descriptor read by two
    /// threads while a third closes duplicates of it, inherited over a fork, and
    /// passed over a socket; the parent has closed its own. Each request is read
    /// once. Wrong sizes and places are refused.
    fn the_descriptor_is_shared(way) {
        for who in ["threads", "child", "passed"] {
            let outcome = paging(way, FAULTS, &["--size", "8M", "--map", "64K", "--serve", who]);
            outcome.said("8 MiB filled and verified; 128 page requests, 128 answered");
            outcome.said("0 answers were not accepted, 0 descriptors ended early");
        }
    }
}

in_each_way! {
    /// MIG-102: in the middle of it the device's page requests are drained, it is
    /// stopped, and goes on; the eventfd is a real one.
    fn page_requests_are_drained(way) {
        drain(way, "finish").said("drained: counted 1, more requests: false");
    }
}

/// MIG-094, MIG-102: nobody answers, and the program gives up.
#[test]
fn a_drain_is_given_up() {
    drain(Way::RootNamespaces, "cancel").said("given up: over false, STOP was Err(Some(16))");
}

fn drain(way: Way, how: &str) -> Outcome {
    let vfuse = Vfuse::new(way).lab("[vfio]\nunlimited_memlock = true\n").device("dsa,addr=01:00.0,migration=p2p");
    let mut program = vec![vfuse.place.program(&example("paging")).into_os_string()];
    program.extend(["--size", "32M", "--map", "64K", "--drain", how].map(Into::into));
    let outcome = vfuse.run(&program);
    outcome.succeeded();
    outcome.said("32 MiB filled and verified; 512 page requests, 512 answered");
    outcome
}

/// FAULT-1.5: every second answer is one too many.
#[test]
fn answers_come_twice() {
    let outcome = paging(Way::RootNamespaces, FAULTS, &["--size", "16M", "--map", "64K", "--answer", "twice"]);
    outcome.said("256 page requests, 256 answered");
    outcome.said("256 answers were not accepted, 0 descriptors");
}

/// FAULT-3.1: the host has answered before; in no mode does the program's answer
/// do anything. With nine bits an answer that comes too late has nothing to hit.
#[test]
fn answers_come_late() {
    let quarantine = "[fault]\ntransport = \"9bit\"\nquarantine = true\n";
    let options = ["--size", "16M", "--map", "64K", "--answer", "late"];
    for (fault, count) in [(FAULTS, "0 answered"), (quarantine, "256 answered")] {
        let outcome = paging(Way::RootNamespaces, fault, &options);
        outcome.said("16 MiB filled and verified; 256 page requests");
        outcome.said(count);
        assert!(!outcome.text.contains(" 0 descriptors ended early"), "{}", outcome.text);
    }
}

/// FAULT-4.4, FAULT-4.5: an accelerator that breaks the rules of page requests,
/// all of them, and a program that serves whatever it asks for.
#[test]
fn the_device_breaks_the_rules() {
    let run = |rules: &str| {
        let lab = format!(
            "[vfio]\nunlimited_memlock = true\n[[device]]\nmodel = \"dsa\"\naddr = \"01:00.0\"\npage_requests = \"{rules}\"\n"
        );
        let vfuse = Vfuse::new(Way::RootNamespaces).lab(&lab).options(["-v"]);
        let outcome =
            vfuse.run([vfuse.place.program(&example("paging")).as_os_str(), "--size".as_ref(), "4M".as_ref()]);
        outcome.succeeded();
        outcome.said("4 MiB filled and verified");
        outcome
    };
    // What comes while the queue is full is lost (FAULT-4.4), so together the
    // rules say less than each for itself.
    run("wrong-index no-last over-capacity after-stop wrong-pasid");
    run("wrong-index").said("page request: index of more than nine bits");
    run("no-last");
    run("over-capacity");
    run("wrong-pasid").said("page request refused: nobody takes it");
}

/// FAULT-1.3, FAULT-3.1: refusals, and silence until the host answers.
#[test]
fn answers_are_wrong_or_do_not_come() {
    for manner in ["wrong", "never"] {
        let options = ["--size", "16M", "--map", "64K", "--answer", manner];
        paging(Way::RootNamespaces, FAULTS, &options).said("16 MiB filled and verified");
    }
}

/// Two parts of one accelerator, the second without a group.
const PARTS: &str = "[vfio]
unlimited_memlock = true
[[device]]
model = \"dsa\"
addr = \"01:00.0\"
driver = \"idxd\"
[[device]]
model = \"dsa\"
parent = \"01:00.0\"
uuid = \"83b8f4f2-509f-382f-3c1e-e6bfe0fa1001\"
pasid = 77
[[device]]
model = \"dsa\"
parent = \"01:00.0\"
uuid = \"83b8f4f2-509f-382f-3c1e-e6bfe0fa1002\"
group = \"none\"
";

in_each_way! {
    /// FAULT-5.4: two processes share the accelerator at the same time, one
    /// answers as it should and one too late; each has its own requests.
    fn two_programs_share_an_accelerator(way) {
        let vfuse = Vfuse::new(way).lab(PARTS);
        let program = vfuse.place.program(&example("paging"));
        let run = |last: u32, options: &str| {
            let uuid = format!("83b8f4f2-509f-382f-3c1e-e6bfe0fa100{last}");
            format!("{} --device {uuid} --size 16M --map 64K {options}", program.display())
        };
        let script = format!("{} & {} || exit 1; wait $!", run(1, ""), run(2, "--answer late"));
        let outcome = vfuse.run(["sh", "-c", &script]);
        outcome.succeeded();
        outcome.said("256 page requests, 256 answered");
        outcome.said("page requests had PASID 77");
        outcome.said("page requests had PASID 1");
    }
}
