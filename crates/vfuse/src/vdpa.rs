// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vfuse vdpa`: management of the vdpa bus of a running lab, and the requests
//! of the control socket behind it.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use host::{VdpaConfig, VdpaError, VdpaInfo, vdpa_table};

use crate::args::{VdpaCommand, VdpaDevCommand};
use crate::control::{Refused, Shared, ask, post_to};

/// Runs a command.
pub(crate) fn command(command: &VdpaCommand) -> Result<ExitCode> {
    match command {
        VdpaCommand::Explain { name, control } => print!("{}", ask(control, &of(name, "explain")?)?),
        VdpaCommand::Dev(VdpaDevCommand::Add { device, control }) => {
            println!("{}", post_to(control, "/v1/vdpa", device.clone())?);
        }
        VdpaCommand::Dev(VdpaDevCommand::Del { name, control }) => {
            post_to(control, &of(name, "delete")?, String::new())?;
        }
        VdpaCommand::Dev(VdpaDevCommand::Show { name, control, json }) => {
            let devices: Vec<VdpaInfo> =
                serde_json::from_str(&ask(control, "/v1/vdpa")?).context("the lab's answer")?;
            let devices: Vec<VdpaInfo> =
                devices.into_iter().filter(|device| name.as_ref().is_none_or(|name| device.name == *name)).collect();
            if devices.is_empty()
                && let Some(name) = name
            {
                bail!("{name}: ENODEV");
            }
            if *json {
                println!("{}", serde_json::to_string(&devices)?);
            } else {
                print!("{}", vdpa_table(&devices));
            }
        }
        VdpaCommand::Dev(VdpaDevCommand::Config { name, control }) => {
            println!("{}", ask(control, &of(name, "config")?)?);
        }
        VdpaCommand::Dev(VdpaDevCommand::Vstats { name, qidx, control }) => {
            let answer = ask(control, &of(name, &format!("vstats/{qidx}"))?)?;
            let all: Vec<(String, u64)> = serde_json::from_str(&answer).context("the lab's answer")?;
            for (name, value) in all {
                println!("{name} {value}");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The path of something of a device. Names have no characters that a path
/// could not have.
fn of(name: &str, what: &str) -> Result<String> {
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        bail!("{name}: ENODEV");
    }
    Ok(format!("/v1/vdpa/{name}/{what}"))
}

/// The requests.
pub(crate) fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/vdpa", get(list).post(add))
        .route("/v1/vdpa/{name}/delete", post(delete))
        .route("/v1/vdpa/{name}/config", get(config))
        .route("/v1/vdpa/{name}/vstats/{queue}", get(statistics))
        .route("/v1/vdpa/{name}/explain", get(explain))
}

async fn list(State(shared): State<Shared>) -> Json<Vec<VdpaInfo>> {
    Json(shared.lock().vdpa_devices())
}

async fn add(State(shared): State<Shared>, body: String) -> Result<String, Refused> {
    let added = shared.lock().vdpa_add(body.trim());
    // The tree has changed, and the device needs turns.
    shared.waker.wake();
    added.map_err(refused)
}

async fn delete(State(shared): State<Shared>, Path(name): Path<String>) -> Result<(), Refused> {
    let (tell, gone) = tokio::sync::oneshot::channel();
    // Nobody is told who has given up.
    let tell = move || {
        let _ = tell.send(());
    };
    shared.lock().vdpa_delete(&name, tell).map_err(refused)?;
    shared.waker.wake();
    // Whoever deletes waits for the last close, as Linux has it. The lab ends
    // without a word.
    let _ = gone.await;
    Ok(())
}

async fn config(State(shared): State<Shared>, Path(name): Path<String>) -> Result<Json<VdpaConfig>, Refused> {
    shared.lock().vdpa_config(&name).map(Json).map_err(refused)
}

async fn statistics(
    State(shared): State<Shared>,
    Path((name, queue)): Path<(String, u32)>,
) -> Result<Json<Vec<(String, u64)>>, Refused> {
    shared.lock().vdpa_statistics(&name, Some(queue)).map(Json).map_err(refused)
}

async fn explain(State(shared): State<Shared>, Path(name): Path<String>) -> Result<String, Refused> {
    shared.lock().vdpa_explain(&name).map_err(refused)
}

fn refused(error: VdpaError) -> Refused {
    let status = match &error {
        VdpaError::Lab(_) => StatusCode::BAD_REQUEST,
        VdpaError::Refused { .. } => StatusCode::UNPROCESSABLE_ENTITY,
    };
    (status, format!("{error}\n"))
}
