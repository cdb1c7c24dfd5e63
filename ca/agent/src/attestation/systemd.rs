//! Which control group a process is in, and which systemd unit it belongs to by that.
//!
//! Laws: the unit is the first component of the path that is not a slice, as systemd itself reads it: what a user or a
//! container names groups below its own unit says nothing. A path that leaves the agent's own view is no group and no unit.
//! A user to whom systemd gave a part of the tree makes groups in there as it likes, and nowhere else.
//! Sources: systemd `cg_path_get_unit`, `cg_unescape`; cgroups(7).

/// Units that own a control group; slices only contain them.
const KINDS: [&str; 5] = [".service", ".scope", ".socket", ".mount", ".swap"];

/// The path of the control group in the text of `/proc/<pid>/cgroup`, if the agent sees it.
pub(super) fn group(cgroup: &str) -> Option<&str> {
    path(cgroup).filter(|path| path.starts_with('/') && is_inside(path))
}

/// The unit in the text of `/proc/<pid>/cgroup`, if any.
pub(super) fn unit(cgroup: &str) -> Option<&str> {
    path(cgroup).and_then(unit_of_path)
}

/// The path in systemd's own hierarchy: the named one where version 1 is mounted, else version 2's.
fn path(cgroup: &str) -> Option<&str> {
    let of = |wanted: &str| {
        cgroup.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            (parts.next()? == wanted).then(|| parts.next()).flatten()
        })
    };
    of("name=systemd").or_else(|| of(""))
}

/// ".." stands at the beginning when the process is outside the agent's control-group namespace.
fn is_inside(path: &str) -> bool {
    path.split('/').all(|component| component != "..")
}

fn unit_of_path(path: &str) -> Option<&str> {
    let path = path.strip_prefix('/').filter(|path| is_inside(path))?;
    let name = path.split('/').find(|component| !component.ends_with(".slice"))?;
    let name = name.strip_prefix('_').unwrap_or(name);
    let is_unit = KINDS.iter().any(|kind| name.len() > kind.len() && name.ends_with(kind));
    is_unit.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_the_first_component_that_is_no_slice() {
        for (cgroup, expected) in [
            ("0::/system.slice/nginx.service\n", Some("nginx.service")),
            ("0::/system.slice/system-getty.slice/getty@tty1.service", Some("getty@tty1.service")),
            ("5:cpu:/x\n1:name=systemd:/system.slice/a.service\n0::/b", Some("a.service")),
            ("0::/system.slice/docker-0123.scope/init", Some("docker-0123.scope")),
            ("0::/system.slice/_cgroup.service", Some("cgroup.service")),
            ("0::/", None),
            ("0::/init.scope", Some("init.scope")),
            ("0::/system.slice", None),
            ("0::/system.slice/.service", None),
            ("0::/plain/nginx.service", None),
            ("", None),
            ("nonsense", None),
        ] {
            assert_eq!(unit(cgroup), expected, "{cgroup:?}");
        }
    }

    #[test]
    fn a_user_cannot_call_its_own_unit_by_a_system_units_name() {
        let own = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service";
        assert_eq!(unit(own), Some("user@1000.service"));
        assert_eq!(unit("0::/system.slice/job.service/nginx.service"), Some("job.service"));
        assert_eq!(unit("0::/system.slice/nginx.service:/x.service"), None, "a colon belongs to the path");
    }

    #[test]
    fn the_group_is_the_whole_path_in_systemds_hierarchy() {
        for (cgroup, expected) in [
            ("0::/system.slice/nginx.service\n", Some("/system.slice/nginx.service")),
            ("5:cpu:/x\n1:name=systemd:/system.slice/a.service\n0::/b", Some("/system.slice/a.service")),
            ("0::/a:b/c d", Some("/a:b/c d")),
            ("0::/", Some("/")),
            ("0::/../x", None),
            ("0::x", None),
            ("5:cpu:/x\n", None),
            ("", None),
        ] {
            assert_eq!(group(cgroup), expected, "{cgroup:?}");
        }
    }

    #[test]
    fn a_group_outside_the_agents_view_is_no_unit() {
        assert_eq!(unit("0::/../nginx.service"), None);
        assert_eq!(unit("0::/../../system.slice/nginx.service"), None);
    }
}
