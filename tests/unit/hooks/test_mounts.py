"""Mountinfo as kernels write it and hostile users make it: what is a network, what is listed, what is exposed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_hooks.mounts import LOCAL, Mount, Unreadable, exposed, parse, read, unlisted, within

ROOT = b"22 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw\n"
NFS = b"36 22 0:41 / /home rw,relatime shared:9 master:3 - nfs4 srv:/export/home rw,vers=4.2,addr=10.0.0.1\n"
FUSE = b"40 22 0:50 / /home/eve/m rw,nosuid,nodev - fuse.sshfs %s rw,user_id=%d,group_id=1000\n"
DATASETS = {"/data/ukb": "ukb"}


def one(point: str = "/x", fstype: str = "nfs4", source: str = "srv:/x", *, foreign: bool = False) -> Mount:
    return Mount(point, fstype, source, writable=True, foreign=foreign)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n\n",
        b"nonsense\n",
        ROOT + b"36 22 0:41 / /home rw,relatime - nfs4 srv:/x\n",
        ROOT + b"36 22 0:41 / /home rw,relatime nfs4 srv:/x rw\n",
        ROOT + b"36 22 0:41 / /home rw,relatime - nfs4 srv:/a b rw\n",
        ROOT + b"36 22 0:41 /\n",
        ROOT[:40],
        ROOT + b"\x00\xff\n",
    ],
)
def test_what_the_kernel_does_not_write_is_refused(text: bytes) -> None:
    with pytest.raises(Unreadable):
        parse(text)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unreadable):
        read(str(tmp_path / "none"))


def test_the_kernels_own_file_can_be_read() -> None:
    found = read()
    assert "/" in {each.point for each in found}
    assert any(each.fstype == "proc" for each in found)


def test_fields_and_optional_fields() -> None:
    root, home = parse(ROOT + NFS)
    assert root == Mount("/", "ext4", "/dev/nvme0n1p2", writable=True)
    assert home == Mount("/home", "nfs4", "srv:/export/home", writable=True)
    assert (root.network, home.network) == (False, True)


def test_escapes_are_undone_and_nothing_else_is() -> None:
    (found,) = parse(b"1 1 0:1 / /a\\040b\\134040\\011\\012c rw - nfs srv:/x\\040y rw\n")
    assert (found.point, found.source) == ("/a b\\040\t\nc", "srv:/x y")
    # a carriage return is not escaped, and is no end of a line either; an empty source is a field
    (found,) = parse(b"1 1 0:1 / /a\rb\x0bc\xff rw -  nfs rw\n".replace(b"-  nfs", b"- nfs "))
    assert (found.point, found.source) == ("/a\rb\x0bc\udcff", "")


@pytest.mark.parametrize(
    ("options", "super_options", "writable"),
    [
        (b"rw", b"rw", True),
        (b"ro", b"rw", False),
        (b"rw", b"ro", False),
        (b"rw,ro", b"rw,context=ro", True),
        (b"relatime", b"", True),
        (b"row", b"root", True),
    ],
)
def test_read_only_is_one_of_both_and_the_first_word(options: bytes, super_options: bytes, writable: bool) -> None:
    (found,) = parse(b"1 1 0:1 / /a " + options + b" - nfs srv:/ " + super_options + b"\n")
    assert found.writable is writable


@pytest.mark.parametrize(
    "fstype",
    [
        *("nfs", "nfs4", "cifs", "smb3", "lustre", "ceph", "gpfs", "beegfs", "glusterfs", "afs", "9p", "orangefs"),
        *("virtiofs", "hostfs", "ocfs2", "gfs2", "panfs", "pvfs2", "fuse", "fuse.sshfs", "fuse.s3fs", "fuse.rclone"),
        *("fuse.mount-s3", "fuse.goofys", "fuse.gcsfuse", "fuse.juicefs", "fuse.nobody-knows", "something-new", ""),
    ],
)
def test_what_is_not_known_to_be_local_is_a_network(fstype: str) -> None:
    assert one(fstype=fstype).network
    assert unlisted([one(fstype=fstype)], []) == [one(fstype=fstype)]


@pytest.mark.parametrize("fstype", sorted(LOCAL))
def test_what_is_local_is_not_refused(fstype: str) -> None:
    assert unlisted([one(fstype=fstype)], []) == []


@pytest.mark.parametrize("listed", ["/home", "srv:/export/home", "srv:/export/home/", "/"])
def test_a_listed_file_system(listed: str) -> None:
    assert unlisted(parse(ROOT + NFS), [listed]) == []


@pytest.mark.parametrize("listed", ["/hom", "/home/x", "/homes", "srv:/export", "srv:/", "home", "", "nfs4", "//home"])
def test_a_file_system_that_is_not_listed(listed: str) -> None:
    assert [each.point for each in unlisted(parse(ROOT + NFS), [listed])] == ["/home"]


def test_below_a_listed_point_counts_as_listed_and_read_only_does_not_count() -> None:
    assert unlisted([one("/home/a/b")], ["/home"]) == []
    assert unlisted([one()._replace(writable=False)], []) == []


@pytest.mark.parametrize("source", [b"srv:/export/home", b"/home", b"srv:/export/home/"])
def test_a_users_own_fuse_mount_is_never_listed_whatever_it_calls_itself(source: bytes) -> None:
    found = unlisted(parse(ROOT + NFS + FUSE % (source, 1000)), ["/home", "srv:/export/home"])
    assert [each.point for each in found] == ["/home/eve/m"]
    assert unlisted(parse(ROOT + FUSE % (source, 0)), ["/home"]) == []


@pytest.mark.parametrize("fstype", ["fuse.ext4", "fuse.lxcfs", "fuseblk"])
def test_a_users_fuse_mount_is_never_local(fstype: str) -> None:
    text = (FUSE % (b"x", 1000)).replace(b"fuse.sshfs", fstype.encode())
    assert parse(text)[0].network
    assert parse(text)[0].foreign


@pytest.mark.parametrize(
    ("mount", "hit"),
    [
        (one("/data/ukb"), True),
        (one("/data/ukb", "xfs", "/dev/sdb"), True),
        (one("/data/ukb/part", "ext4"), True),
        (one("/data"), True),
        (one("/data", "autofs"), True),
        (one("/data/ukb", "autofs"), True),
        (one("/data", "xfs", "/dev/sdb"), False),
        (one("/"), False),
        (one("/data/ukb", "tmpfs"), False),
        (one("/data/ukb2"), False),
        (one("/data/uk"), False),
        (one("/mnt/data/ukb"), False),
        (one("/elsewhere", source="/data/ukb"), False),
        (one("/data/ukb", "fuse.sshfs", foreign=True), False),
    ],
)
def test_where_a_dataset_is_exposed(mount: Mount, hit: bool) -> None:
    found = exposed([one("/", "ext4"), mount], DATASETS, {})
    assert found == ((mount, "dataset ukb") if hit else None)


@pytest.mark.parametrize(
    ("mount", "hit"),
    [
        (one("/anywhere", source="fs-1:/"), True),
        (one("/anywhere", source="fs-1:"), True),
        (one("/", source="fs-1:/"), True),
        (one("/shared/eu"), True),
        (one("/shared/eu/a"), True),
        (one("/shared"), True),
        (one("/shared/eu", "xfs"), False),
        (one("/shared/us"), False),
        (one("/x", source="fs-1:/sub"), False),
        (one("/x", source=""), False),
        (one("/x", "fuse.sshfs", "fs-1:/", foreign=True), False),
        (one("/x", "fuse.mount-s3", "fs-1:/"), True),
    ],
)
def test_where_a_jurisdictions_file_system_is_exposed(mount: Mount, hit: bool) -> None:
    found = exposed([mount], {}, {"fs-1:/": "eu", "/shared/eu": "eu"})
    assert found == ((mount, "jurisdiction eu") if hit else None)


NAMES = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=12)


@given(point=NAMES, source=NAMES, fstype=st.sampled_from(["nfs", "ext4", "fuse.x"]))
def test_no_name_makes_another_mount_of_it(point: str, source: str, fstype: str) -> None:
    def escaped(text: str) -> bytes:
        # fs/proc_namespace.c, mangle(): blank, tab, line feed, backslash and '#'
        raw = text.encode("utf-8", "surrogateescape")
        return b"".join(b"\\%03o" % byte if byte in b" \t\n\\#" else bytes([byte]) for byte in raw)

    line = b"5 1 0:7 / /%s rw,noatime - %s %s rw\n" % (escaped(point), fstype.encode(), escaped(source))
    assert parse(ROOT + line)[1:] == [Mount(f"/{point}", fstype, source, writable=True)]


@given(st.binary(max_size=200))
def test_garbage_is_mounts_or_refused(text: bytes) -> None:
    try:
        found = parse(text)
    except Unreadable:
        return
    assert found


def test_within_is_by_components() -> None:
    assert within("/a/b", "/a")
    assert within("/a", "/a")
    assert within("/a", "/")
    assert not within("/ab", "/a")
    assert not within("/a", "/a/b")
