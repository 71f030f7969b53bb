// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vfuse migration`: devices that migrate in a running lab, and what goes
//! wrong with them, and the requests of the control socket behind it.

use std::process::ExitCode;

use anyhow::{Context, Result};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use host::{MigrationInfo, NotPlanned, migration_table};

use crate::args::MigrationCommand;
use crate::control::{Refused, Shared, ask, parse_address, post_to};

/// Runs a command.
pub(crate) fn command(command: &MigrationCommand) -> Result<ExitCode> {
    let (answer, json) = match command {
        MigrationCommand::List { control, json } => (ask(control, "/v1/migration")?, *json),
        MigrationCommand::Fail { address, what, control, json } => {
            (post_to(control, &format!("/v1/migration/{address}/fail"), what.join(";"))?, *json)
        }
        MigrationCommand::Mend { address, control, json } => {
            (post_to(control, &format!("/v1/migration/{address}/mend"), String::new())?, *json)
        }
    };
    if json {
        println!("{answer}");
    } else {
        let devices: Vec<MigrationInfo> = serde_json::from_str(&answer).context("the lab's answer")?;
        print!("{}", migration_table(&devices));
    }
    Ok(ExitCode::SUCCESS)
}

/// The requests.
pub(crate) fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/migration", get(list))
        .route("/v1/migration/{address}/fail", post(fail))
        .route("/v1/migration/{address}/mend", post(mend))
}

async fn list(State(shared): State<Shared>) -> Json<Vec<MigrationInfo>> {
    Json(shared.lock().migrations())
}

/// Text that says no failure is 400, a function that is not there 404, one
/// that does not migrate 422. The answer is the device as it is then.
async fn fail(
    State(shared): State<Shared>,
    Path(address): Path<String>,
    body: String,
) -> Result<Json<Vec<MigrationInfo>>, Refused> {
    let address = parse_address(&address)?;
    shared.lock().fail_migration(address, &body).map_err(refused)?;
    Ok(one(&shared, address))
}

async fn mend(State(shared): State<Shared>, Path(address): Path<String>) -> Result<Json<Vec<MigrationInfo>>, Refused> {
    let address = parse_address(&address)?;
    shared.lock().mend_migration(address).map_err(refused)?;
    Ok(one(&shared, address))
}

fn one(shared: &Shared, address: pci::Address) -> Json<Vec<MigrationInfo>> {
    let address = address.to_string();
    Json(shared.lock().migrations().into_iter().filter(|device| device.address == address).collect())
}

fn refused(error: NotPlanned) -> Refused {
    let status = match &error {
        NotPlanned::Text(_) => StatusCode::BAD_REQUEST,
        NotPlanned::NoDevice(_) => StatusCode::NOT_FOUND,
        NotPlanned::NotMigrating(_) | NotPlanned::TooMany(_) => StatusCode::UNPROCESSABLE_ENTITY,
    };
    (status, format!("{error}\n"))
}
