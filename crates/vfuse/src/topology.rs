// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vfuse group` and `vfuse reset-group`: of a running lab, or of any sysfs.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};
use host::survey::{self, Files, GroupReport, ResetReport, Survey};
use pci::Address;

use crate::args::{GroupCommand, ResetGroupCommand, Source};
use crate::control;

/// More of a file is not looked at.
const LONGEST: u64 = 64 << 10;

/// A sysfs on disk.
struct Disk;

impl Files for Disk {
    fn read(&self, path: &str) -> Option<Vec<u8>> {
        use std::io::Read;
        let mut content = Vec::new();
        fs::File::open(path).ok()?.take(LONGEST).read_to_end(&mut content).ok()?;
        Some(content)
    }

    fn link(&self, path: &str) -> Option<String> {
        fs::read_link(path).ok()?.into_os_string().into_string().ok()
    }

    fn list(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }
}

fn read(source: &Source) -> Result<Survey> {
    let root = source.sysfs.as_deref().unwrap_or("/sys".as_ref());
    let root = root.to_str().context("the sysfs root has to be UTF-8")?;
    Ok(Survey::read(&Disk, root.trim_end_matches('/'))?)
}

pub(crate) fn group(command: &GroupCommand) -> Result<ExitCode> {
    let GroupCommand::List { source } = command;
    let groups: Vec<GroupReport> = match &source.control {
        Some(socket) => serde_json::from_str(&control::ask(socket, "/v1/groups")?).context("the lab's answer")?,
        None => read(source)?.groups(),
    };
    if source.json {
        println!("{}", serde_json::to_string_pretty(&groups)?);
    } else {
        print!("{}", survey::group_table(&groups));
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn reset_group(command: &ResetGroupCommand) -> Result<ExitCode> {
    match command {
        ResetGroupCommand::List { user, source } => {
            let groups: Vec<ResetReport> = match &source.control {
                Some(socket) => {
                    let answer = control::ask(socket, &format!("/v1/reset-groups{}", query(user)))?;
                    serde_json::from_str(&answer).context("the lab's answer")?
                }
                None => read(source)?.reset_groups(some(user)),
            };
            if source.json {
                println!("{}", serde_json::to_string_pretty(&groups)?);
            } else {
                print!("{}", survey::reset_table(&groups));
            }
        }
        ResetGroupCommand::Show { address, user, source } => {
            let group: ResetReport = match &source.control {
                Some(socket) => {
                    let answer = control::ask(socket, &format!("/v1/reset-groups/{address}{}", query(user)))?;
                    serde_json::from_str(&answer).context("the lab's answer")?
                }
                None => {
                    let found = read(source)?.reset_group(*address, some(user));
                    found.with_context(|| format!("no function at {address}"))?
                }
            };
            if source.json {
                println!("{}", serde_json::to_string_pretty(&group)?);
            } else {
                print!("{}", survey::reset_details(&group));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Nobody named: what a user would need.
fn some(user: &[Address]) -> Option<&[Address]> {
    (!user.is_empty()).then_some(user)
}

fn query(user: &[Address]) -> String {
    let list: Vec<String> = user.iter().map(Address::to_string).collect();
    if list.is_empty() { String::new() } else { format!("?user={}", list.join(",")) }
}
