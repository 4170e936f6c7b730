//! Why a request is not done, as front doors say it.

use lifeboat_catalog::CatalogError;
use lifeboat_model::Sequence;
use lifeboat_model::contract::ReturnCode;
use lifeboat_model::relationship::Refused;
use lifeboat_peer::LinkError;
use lifeboat_store::StoreError;

use crate::api::Rejection;
use crate::jobs::not_saved;
use crate::service::with_causes;
use crate::vm::StepError;

pub(crate) fn rejection_of_refused(refused: &Refused) -> Rejection {
    Rejection {
        code: refused.return_code(),
        what: refused.to_string(),
        remedy: refused.remedy().to_owned(),
    }
}

pub(crate) fn rejection_of_step(error: StepError) -> Rejection {
    match error {
        StepError::Refused(refused) => rejection_of_refused(&refused),
        StepError::NoRelation => not_replicated(),
        StepError::Save { source } => not_saved("what follows", &source),
    }
}

pub(crate) fn rejection_of_link(doing: &str, error: &LinkError) -> Rejection {
    let (code, remedy) = match error {
        LinkError::Refused(refusal) => (
            crate::work::return_code(refusal.code),
            "mend that on the other host, then try again",
        ),
        LinkError::NotTrusted { .. } => (
            ReturnCode::AccessDenied,
            "see `lifeboat certificate show` on both hosts",
        ),
        LinkError::TimedOut { .. } => (ReturnCode::Timeout, "try again"),
        _ => (
            ReturnCode::NotAvailable,
            "look at the network, and at the daemon on the other host",
        ),
    };
    Rejection {
        code,
        what: format!("{doing}: {}", with_causes(error)),
        remedy: remedy.to_owned(),
    }
}

pub(crate) fn store_rejection(doing: &str, error: &StoreError) -> Rejection {
    Rejection {
        code: crate::replica::store_code(error),
        what: format!("{doing}: {}", with_causes(error)),
        remedy: String::new(),
    }
}

pub(crate) fn not_replicated() -> Rejection {
    Rejection {
        code: ReturnCode::InvalidState,
        what: "the VM is not replicated".to_owned(),
        remedy: "enable it: `lifeboat replication enable`".to_owned(),
    }
}

pub(crate) fn not_here() -> Rejection {
    Rejection {
        code: ReturnCode::InvalidState,
        what: "recovery points are kept on the replica's host, and this one has no store of the VM"
            .to_owned(),
        remedy: "ask the host that has the replica: use --host".to_owned(),
    }
}

pub(crate) fn no_point(point: Sequence) -> Rejection {
    Rejection {
        code: ReturnCode::InvalidParameter,
        what: format!("there is no recovery point {point}"),
        remedy: "see `lifeboat point list`".to_owned(),
    }
}

pub(crate) fn unsupported(what: &str, remedy: &str) -> Rejection {
    Rejection {
        code: ReturnCode::NotSupported,
        what: what.to_owned(),
        remedy: remedy.to_owned(),
    }
}

pub(crate) fn not_read(what: &str, error: &CatalogError) -> Rejection {
    failed(format!("read {what}: {}", with_causes(error)))
}

pub(crate) fn failed(what: String) -> Rejection {
    Rejection {
        code: ReturnCode::Failed,
        what,
        remedy: String::new(),
    }
}

pub(crate) fn invalid(what: String) -> Rejection {
    Rejection {
        code: ReturnCode::InvalidParameter,
        what,
        remedy: String::new(),
    }
}
