//! Who is at the other end of a unix socket.

use std::io::Read as _;

use lifeboat_service::api::{AccessRole, Caller};
use tokio::net::unix::UCred;

/// Who may use a unix socket, by what the kernel says of the process that connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnixAccess {
    /// The daemon's own user, an administrator as root is.
    pub daemon_uid: u32,
    /// The members of this group are operators.
    pub operators_gid: Option<u32>,
}

impl UnixAccess {
    /// The caller with these credentials; `None` for somebody who is let in by nothing.
    pub(crate) fn caller(self, credentials: &UCred) -> Option<Caller> {
        let role = self.role(credentials.uid(), credentials.gid(), || {
            credentials.pid().and_then(read_status)
        })?;
        Some(Caller {
            name: format!("unix:{}", credentials.uid()),
            role,
        })
    }

    /// `status` is what the kernel tells about the process, if it is still there.
    fn role(
        self,
        uid: u32,
        gid: u32,
        status: impl FnOnce() -> Option<String>,
    ) -> Option<AccessRole> {
        if uid == 0 || uid == self.daemon_uid {
            return Some(AccessRole::Administrator);
        }
        let operators = self.operators_gid?;
        let is_operator =
            gid == operators || status().is_some_and(|status| is_member(&status, uid, operators));
        is_operator.then_some(AccessRole::Operator)
    }
}

/// Whether a process is in a group. The process that connected may have ended and its number may
/// be another's by now: only one of the same user counts.
fn is_member(status: &str, uid: u32, group: u32) -> bool {
    let field = |name: &str| {
        let mut lines = status.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
    };
    let numbers = |field: &str| -> Vec<u32> {
        let words = field.split_ascii_whitespace();
        words.map_while(|word| word.parse().ok()).collect()
    };
    // Real, effective, saved and file system user.
    let of_user = field("Uid")
        .map(numbers)
        .is_some_and(|uids| uids.len() == 4 && uids.iter().all(|&one| one == uid));
    of_user
        && field("Groups")
            .map(numbers)
            .is_some_and(|groups| groups.contains(&group))
}

fn read_status(pid: i32) -> Option<String> {
    // The longest list of groups that the kernel keeps is 65,536 numbers.
    const MAX_BYTES: u64 = 1 << 20;
    let mut status = String::new();
    let file = std::fs::File::open(format!("/proc/{pid}/status")).ok()?;
    file.take(MAX_BYTES).read_to_string(&mut status).ok()?;
    Some(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCESS: UnixAccess = UnixAccess {
        daemon_uid: 990,
        operators_gid: Some(500),
    };

    fn role(uid: u32, gid: u32, status: &str) -> Option<AccessRole> {
        ACCESS.role(uid, gid, || Some(status.to_owned()))
    }

    const MEMBER: &str = "Name:\tcurl\nUid:\t1000\t1000\t1000\t1000\nGid:\t1000\t1000\t1000\t1000\nGroups:\t4 500 1000 \n";

    #[test]
    fn root_and_the_daemon_are_administrators() {
        assert_eq!(role(0, 0, ""), Some(AccessRole::Administrator));
        assert_eq!(role(990, 1, ""), Some(AccessRole::Administrator));
    }

    #[test]
    fn members_of_the_group_are_operators_and_others_are_nobody() {
        assert_eq!(role(1000, 500, ""), Some(AccessRole::Operator));
        assert_eq!(role(1000, 1000, MEMBER), Some(AccessRole::Operator));
        assert_eq!(role(1000, 1000, &MEMBER.replace("500", "501")), None);
        assert_eq!(role(1000, 1000, &MEMBER.replace("500", "5000")), None);
        assert_eq!(role(1000, 1000, ""), None);
        assert_eq!(ACCESS.role(1000, 1000, || None), None);
    }

    #[test]
    fn the_groups_of_another_user_do_not_count() {
        assert_eq!(role(1001, 1001, MEMBER), None);
        let privileged = MEMBER.replace("1000\t1000\t1000\t1000\nGid", "1000\t0\t0\t0\nGid");
        assert_eq!(role(1000, 1000, &privileged), None);
    }

    #[test]
    fn without_a_group_there_are_no_operators() {
        let access = UnixAccess {
            daemon_uid: 990,
            operators_gid: None,
        };
        assert_eq!(access.role(1000, 500, || Some(MEMBER.to_owned())), None);
    }

    #[test]
    fn the_kernel_tells_about_this_process() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(read_status(pid).unwrap().contains("\nGroups:"));
        assert_eq!(read_status(-1), None);
    }
}
