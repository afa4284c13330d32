//! The certificate: how it is about it, and another one now.

use super::{FAILURE, Output, Refusal, desk, refusal};
use crate::config::{Config, Environment};
use crate::control;
use crate::tls::Status;
use serde_json::json;
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

/// What is asked about the certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cert {
    /// How it is about it.
    Status,
    /// A new one now.
    Renew,
    /// One for trial.
    Test,
}

/// How often the server is asked whether it is done.
const LOOK: Duration = Duration::from_millis(500);

/// An authority takes minutes at most, and the server has a deadline of its own.
const LOOKS: u32 = 25 * 60;

/// Does what was asked, with the server's help where that must be running.
pub fn run(
    cert: Cert,
    config: &Config,
    environment: &Environment,
    data_dir: &Path,
) -> Result<Output, Refusal> {
    match cert {
        Cert::Status => status(config, data_dir),
        Cert::Renew => errand("renew", config, environment),
        Cert::Test => errand("test", config, environment),
    }
}

fn status(config: &Config, data_dir: &Path) -> Result<Output, Refusal> {
    let status = Status::read(config, data_dir).map_err(|why| refusal(FAILURE, why))?;
    let Some(status) = status else {
        return Err(refusal(
            FAILURE,
            "this server speaks plain HTTP and has no certificate: acme.domain gets one, tls.cert and tls.key name \
             your own",
        ));
    };
    let time = |time: SystemTime| humantime::format_rfc3339_seconds(time).to_string();
    let facts = status.facts.as_ref();
    let problem = status.problem(desk::now());
    let json = json!({
        "names": facts.map(|facts| &facts.names),
        "valid_from": facts.map(|facts| time(facts.from)),
        "valid_until": facts.map(|facts| time(facts.until)),
        "authority": status.authority,
        "wanted": status.wanted,
        "terms": status.terms,
        "next_attempt": status.next_attempt.map(time),
        "last_attempt": status.last_attempt.map(time),
        "last_success": status.last_success.map(time),
        "last_error": status.last_error,
        "failures": status.failures,
        "problem": problem,
    });
    let mut lines = match facts {
        Some(facts) => vec![
            format!("names         {}", facts.names.join(", ")),
            format!("valid         {} until {}", time(facts.from), time(facts.until)),
        ],
        None => vec![format!("names         none yet; wanted: {}", status.wanted.join(", "))],
    };
    lines.extend(status.authority.as_ref().map(|url| format!("authority     {url}")));
    lines.extend(status.terms.as_ref().map(|url| format!("terms         {url}")));
    lines.extend(status.last_attempt.map(|at| format!("last attempt  {}", time(at))));
    lines.extend(
        status.last_error.as_ref().map(|why| format!("failed        {} times: {why}", status.failures)),
    );
    lines.extend(status.next_attempt.map(|at| format!("next attempt  {}", time(at))));
    let mut output = Output::new(lines.iter().map(|line| format!("{line}\n")).collect(), &json);
    output.warnings.extend(problem);
    Ok(output)
}

/// Has the running server do it, for the authority comes to its ports to look.
fn errand(what: &str, config: &Config, environment: &Environment) -> Result<Output, Refusal> {
    let failed = |why| refusal(FAILURE, why);
    let number = control::ask(config, environment, &format!("certificate {what}")).map_err(failed)?;
    for _ in 0..LOOKS {
        let question = format!("certificate outcome {number}");
        let answer = control::ask(config, environment, &question).map_err(failed)?;
        if let Some(said) = answer.strip_prefix("done ") {
            return Ok(Output::new(format!("{said}\n"), &json!({ "outcome": said })));
        }
        thread::sleep(LOOK);
    }
    Err(failed("the server is still at it; its log will say what came of it".to_owned()))
}
