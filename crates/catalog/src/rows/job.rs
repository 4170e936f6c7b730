//! Jobs: long work that people can watch, from its submission until some time after its end.

use std::time::Duration;

use lifeboat_model::{RelationshipId, Timestamp, VmId};
use rusqlite::types::Value;
use rusqlite::{Row, params, params_from_iter};

use super::page;
use crate::catalog::{Change, Reader};
use crate::column::{
    self, bounded, duration_micros, encoded, integer, micros, optional_document, optional_time,
};
use crate::document::Document;
use crate::error::{CatalogError, Doing, Refused, unless_duplicate};
use crate::id::JobId;

/// How long an ended job can be read at least (`TimeBeforeRemoval` of the contract).
pub const MIN_JOB_RETENTION: Duration = Duration::from_secs(5 * 60);

/// A job. Numbers are those of the contract's `Msvm_ConcreteJob`.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    pub id: JobId,
    pub job_type: u16,
    pub vm: Option<VmId>,
    pub relationship: Option<RelationshipId>,
    pub name: String,
    pub job_state: u16,
    /// 0 to 100.
    pub percent_complete: u8,
    /// 0 is no error.
    pub error_code: u16,
    pub error_description: String,
    /// The list of errors, with what `GetErrorEx` needs; absent when there is none.
    pub errors: Option<Document>,
    pub time_submitted: Timestamp,
    /// When it was meant to begin; absent when at once.
    pub scheduled_start: Option<Timestamp>,
    /// Absent until it began.
    pub start_time: Option<Timestamp>,
    pub elapsed: Duration,
    pub time_of_last_state_change: Timestamp,
    pub cancellable: bool,
    /// Who asked for it.
    pub owner: String,
    /// What was asked for: enough to resume the job, or to end it with a reason.
    pub request: Document,
    /// Absent until there is one.
    pub result: Option<Document>,
    /// When it ended. From then on the job is not changed.
    pub final_at: Option<Timestamp>,
}

/// Which jobs are listed: those that match everything that is present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobFilter {
    pub vm: Option<VmId>,
    pub relationship: Option<RelationshipId>,
    pub job_type: Option<u16>,
    pub activity: Activity,
}

impl JobFilter {
    pub const ALL: Self = Self {
        vm: None,
        relationship: None,
        job_type: None,
        activity: Activity::Any,
    };

    /// The jobs that a restart must resume or end.
    #[must_use]
    pub const fn unfinished() -> Self {
        Self {
            activity: Activity::Unfinished,
            ..Self::ALL
        }
    }
}

/// Whether jobs are listed that go on, that ended, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    Any,
    Unfinished,
    Ended,
}

impl Activity {
    const fn condition(self) -> &'static str {
        match self {
            Self::Any => "TRUE",
            Self::Unfinished => "final_at IS NULL",
            Self::Ended => "final_at IS NOT NULL",
        }
    }
}

/// Where a page of jobs ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobCursor(u64);

impl JobCursor {
    /// The cursor that was written as this number; any number is one.
    #[must_use]
    pub const fn from_number(number: u64) -> Self {
        Self(number)
    }

    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }
}

/// A part of the list of jobs, which goes from the one submitted last to the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobPage {
    after: Option<JobCursor>,
    limit: usize,
}

impl JobPage {
    /// The jobs submitted last, at most [`PAGE_LIMIT`](super::PAGE_LIMIT) of them.
    #[must_use]
    pub const fn newest(limit: usize) -> Self {
        Self { after: None, limit }
    }

    /// Those that come after a page in the list.
    #[must_use]
    pub const fn after(cursor: JobCursor, limit: usize) -> Self {
        Self {
            after: Some(cursor),
            limit,
        }
    }

    fn before(self) -> i64 {
        self.after.map_or(i64::MAX, |cursor| {
            i64::try_from(cursor.0).unwrap_or(i64::MAX)
        })
    }
}

/// How long and how many ended jobs are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobRetention {
    age: Duration,
    most: u32,
}

/// Less than the contract promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("ended jobs are kept for at least {} seconds, {} are too few", MIN_JOB_RETENTION.as_secs(), age.as_secs())]
pub struct RetentionTooShort {
    age: Duration,
}

impl JobRetention {
    /// Ended jobs go when they are older than `age`; of the younger ones at most `most` stay,
    /// but none goes within [`MIN_JOB_RETENTION`].
    ///
    /// # Errors
    /// Refused when `age` is less than [`MIN_JOB_RETENTION`].
    pub const fn new(age: Duration, most: u32) -> Result<Self, RetentionTooShort> {
        if age.as_micros() < MIN_JOB_RETENTION.as_micros() {
            return Err(RetentionTooShort { age });
        }
        Ok(Self { age, most })
    }
}

impl Reader<'_> {
    /// The job with this id.
    ///
    /// # Errors
    /// Accidents of the catalog.
    pub fn job(&self, id: JobId) -> Result<Option<Job>, CatalogError> {
        let sql = "SELECT * FROM job WHERE id = ?1";
        self.row("read a job", sql, [id.as_bytes()], job)
    }

    /// A page of the jobs that match, and where the next one begins if there may be one.
    ///
    /// # Errors
    /// Accidents of the catalog.
    pub fn jobs(
        &self,
        filter: &JobFilter,
        page_wanted: JobPage,
    ) -> Result<(Vec<Job>, Option<JobCursor>), CatalogError> {
        // Only the conditions that are asked for, so that SQLite finds the index for them.
        let mut sql = format!(
            "SELECT * FROM job WHERE {} AND number < ?",
            filter.activity.condition()
        );
        let mut values = vec![Value::Integer(page_wanted.before())];
        let asked = [
            (
                " AND vm = ?",
                filter.vm.map(|vm| vm.as_bytes().to_vec().into()),
            ),
            (
                " AND relationship = ?",
                filter.relationship.map(|id| id.as_bytes().to_vec().into()),
            ),
            (
                " AND job_type = ?",
                filter.job_type.map(|number| i64::from(number).into()),
            ),
        ];
        for (condition, value) in asked {
            if let Some(value) = value {
                sql.push_str(condition);
                values.push(value);
            }
        }
        let limit = page(page_wanted.limit);
        sql.push_str(" ORDER BY number DESC LIMIT ?");
        values.push(limit.into());
        let rows = self.rows("list the jobs", &sql, params_from_iter(values), |row| {
            Ok((JobCursor(column::unsigned(row, "number")?), job(row)?))
        })?;
        let full = i64::try_from(rows.len()).is_ok_and(|rows| rows == limit);
        let last = rows.last().map(|(cursor, _)| *cursor);
        let jobs = rows.into_iter().map(|(_, job)| job).collect();
        Ok((jobs, last.filter(|_| full)))
    }
}

impl Change<'_> {
    /// Adds a job.
    ///
    /// # Errors
    /// Refused when the id is there already, and when something is too long; accidents of the
    /// catalog.
    pub fn job_add(&self, job: &Job) -> Result<(), CatalogError> {
        let sql = "INSERT INTO job (id, job_type, vm, relationship, name, job_state,
            percent_complete, error_code, error_description, errors, time_submitted,
            scheduled_start, start_time, elapsed, time_of_last_state_change, cancellable, owner,
            request, result, final_at)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17,
            ?18, ?19, ?20)";
        let values = params![
            job.id.as_bytes(),
            job.job_type,
            job.vm.as_ref().map(VmId::as_bytes),
            job.relationship.as_ref().map(RelationshipId::as_bytes),
            bounded("the job's name", &job.name)?,
            job.job_state,
            job.percent_complete,
            job.error_code,
            bounded("the job's error description", &job.error_description)?,
            encoded("the job's errors", job.errors.as_ref())?,
            micros(job.time_submitted),
            job.scheduled_start.map(micros),
            job.start_time.map(micros),
            duration_micros(job.elapsed),
            micros(job.time_of_last_state_change),
            job.cancellable,
            bounded("the job's owner", &job.owner)?,
            job.request.encode("the job's request")?,
            encoded("the job's result", job.result.as_ref())?,
            job.final_at.map(micros),
        ];
        let refused = || Refused::JobExists { job: job.id };
        unless_duplicate(self.execute(sql, values), "add a job", refused)?;
        Ok(())
    }

    /// Saves how a job stands. Its type, VM, relationship, name, owner, request and time of
    /// submission stay as they were added.
    ///
    /// # Errors
    /// Refused when there is no such job, when the saved one has ended, and when something is
    /// too long; accidents of the catalog.
    pub fn job_save(&self, job: &Job) -> Result<(), CatalogError> {
        let sql = "UPDATE job SET job_state = ?2, percent_complete = ?3, error_code = ?4,
            error_description = ?5, errors = ?6, scheduled_start = ?7, start_time = ?8,
            elapsed = ?9, time_of_last_state_change = ?10, cancellable = ?11, result = ?12,
            final_at = ?13 WHERE id = ?1 AND final_at IS NULL";
        let values = params![
            job.id.as_bytes(),
            job.job_state,
            job.percent_complete,
            job.error_code,
            bounded("the job's error description", &job.error_description)?,
            encoded("the job's errors", job.errors.as_ref())?,
            job.scheduled_start.map(micros),
            job.start_time.map(micros),
            duration_micros(job.elapsed),
            micros(job.time_of_last_state_change),
            job.cancellable,
            encoded("the job's result", job.result.as_ref())?,
            job.final_at.map(micros),
        ];
        if self.execute(sql, values).doing("save a job")? > 0 {
            return Ok(());
        }
        let id = job.id;
        let sql = "SELECT 1 FROM job WHERE id = ?1";
        let ended = self.row("read a job", sql, [id.as_bytes()], |_| Ok(()))?;
        Err(match ended {
            Some(()) => Refused::JobEnded { job: id },
            None => Refused::NoJob { job: id },
        }
        .into())
    }

    /// Removes ended jobs as `retention` has it, and says how many.
    ///
    /// A clock that was put back does not keep jobs for ever: those that seem to end more than
    /// [`MIN_JOB_RETENTION`] after `now` count as old enough to go when there are too many.
    ///
    /// # Errors
    /// Accidents of the catalog.
    pub fn job_purge(
        &self,
        retention: JobRetention,
        now: Timestamp,
    ) -> Result<usize, CatalogError> {
        // The newest ended job that is one too many; jobs are counted by their submission,
        // because clocks order nothing.
        let sql = "DELETE FROM job WHERE final_at IS NOT NULL AND (
            final_at <= ?1
            OR ((final_at <= ?2 OR final_at > ?3) AND number <= (
                SELECT number FROM job WHERE final_at IS NOT NULL
                ORDER BY number DESC LIMIT 1 OFFSET ?4)))";
        let now = micros(now);
        let minimum = duration_micros(MIN_JOB_RETENTION);
        let values = params![
            now.saturating_sub(duration_micros(retention.age)),
            now.saturating_sub(minimum),
            now.saturating_add(minimum),
            integer("the number of jobs kept", u64::from(retention.most))?,
        ];
        self.execute(sql, values).doing("remove ended jobs")
    }
}

fn job(row: &Row<'_>) -> rusqlite::Result<Job> {
    Ok(Job {
        id: JobId::from_bytes(row.get("id")?),
        job_type: row.get("job_type")?,
        vm: row.get::<_, Option<_>>("vm")?.map(VmId::from_bytes),
        relationship: row
            .get::<_, Option<_>>("relationship")?
            .map(RelationshipId::from_bytes),
        name: row.get("name")?,
        job_state: row.get("job_state")?,
        percent_complete: row.get("percent_complete")?,
        error_code: row.get("error_code")?,
        error_description: row.get("error_description")?,
        errors: optional_document(row, "errors")?,
        time_submitted: column::time(row, "time_submitted")?,
        scheduled_start: optional_time(row, "scheduled_start")?,
        start_time: optional_time(row, "start_time")?,
        elapsed: Duration::from_micros(column::unsigned(row, "elapsed")?),
        time_of_last_state_change: column::time(row, "time_of_last_state_change")?,
        cancellable: row.get("cancellable")?,
        owner: row.get("owner")?,
        request: column::document(row, "request")?,
        result: optional_document(row, "result")?,
        final_at: optional_time(row, "final_at")?,
    })
}
