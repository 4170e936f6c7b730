//! Jobs.

use lifeboat_service::api::{JobId, JobView};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Time;

/// Long work (`Msvm_ConcreteJob`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Job {
    pub instance_id: String,
    pub name: String,
    /// The VM that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    pub job_type: u16,
    pub job_type_text: String,
    pub job_state: u16,
    pub job_state_text: String,
    pub percent_complete: u16,
    pub job_status: String,
    /// A return code; 0 unless the job failed.
    pub error_code: u16,
    pub error_description: String,
    pub time_submitted: Time,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    pub elapsed_micros: u64,
    pub time_of_last_state_change: Time,
    pub cancellable: bool,
    pub owner: String,
    /// Whether nothing more will happen to it.
    pub ended: bool,
}

impl From<JobView> for Job {
    fn from(view: JobView) -> Self {
        Self {
            instance_id: job_id(view.id),
            name: view.name,
            vm: view.vm.map(|vm| vm.to_string()),
            job_type: view.job_type.number(),
            job_type_text: view.job_type.to_string(),
            job_state: view.job_state.number(),
            job_state_text: view.job_state.to_string(),
            percent_complete: view.percent_complete,
            job_status: view.job_status,
            error_code: view.error_code,
            error_description: view.error_description,
            time_submitted: view.time_submitted.into(),
            start_time: view.start_time.map(Time),
            elapsed_micros: view.elapsed_micros,
            time_of_last_state_change: view.time_of_last_state_change.into(),
            cancellable: view.cancellable,
            owner: view.owner,
            ended: view.job_state.is_final(),
        }
    }
}

/// A job's identity as text: 32 hexadecimal digits.
#[must_use]
pub fn job_id(job: JobId) -> String {
    job.0.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The job with this identity; `None` for other text.
#[must_use]
pub fn parse_job_id(text: &str) -> Option<JobId> {
    // The digits are those of every identifier of 16 bytes.
    let id: lifeboat_model::VmId = text.parse().ok()?;
    Some(JobId(*id.as_bytes()))
}
