"""What only the whole policy can show: names that refer to nothing, values that contradict each other, circles.

The checks look at what YAML read, not at the finished classes, so that they are told together with every other mistake.
"""

from __future__ import annotations

from itertools import pairwise

from conf.inclusion import closure, cycles
from conf.quote import did_you_mean, quote
from conf.rawchecks import Findings, Raw, duration, items, known, mappings, section, size, texts, unknown
from conf.shadow import SHADOWABLE

# the words of a role or dataset, the section that they refer to, and what one of them is called
_ROLE_WORDS = (("classes", "classes", "class"), ("jurisdictions", "jurisdictions", "jurisdiction"))
_DATASET_WORDS = (("residency", "jurisdictions", "jurisdiction"), ("roles", "roles", "role"))


def check_policy(policy: Raw) -> Findings:
    """Every contradiction in a policy file: the path of the value, and what is wrong with it."""
    yield from _jurisdictions(policy)
    yield from _classes(policy)
    yield from _partitions(policy)
    yield from _references(policy, "roles", _ROLE_WORDS)
    yield from _references(policy, "datasets", _DATASET_WORDS)
    yield from _circles(policy, "roles")
    yield from _circles(policy, "datasets")
    yield from _datasets(policy)
    yield from _shadow(policy)


def _jurisdictions(policy: Raw) -> Findings:
    features: dict[str, str] = {}
    regions: dict[str, str] = {}
    for name, each in mappings(policy, "jurisdictions"):
        feature = each.get("feature")
        if isinstance(feature, str) and features.setdefault(feature, name) != name:
            yield (
                ("jurisdictions", name, "feature"),
                f"the feature {quote(feature)} already stands for {quote(features[feature])}",
            )
        for index, region in texts(each, "regions"):
            if regions.setdefault(region, name) != name:
                yield (
                    ("jurisdictions", name, "regions", index),
                    f"the region {quote(region)} is already in {quote(regions[region])}",
                )
        for index, word in texts(each, "adequate"):
            where = ("jurisdictions", name, "adequate", index)
            if word == name:
                yield where, "a jurisdiction need not be called adequate by itself"
            elif word not in section(policy, "jurisdictions"):
                yield where, unknown(word, section(policy, "jurisdictions"), "jurisdiction")


def _classes(policy: Raw) -> Findings:
    seen: set[str] = set()
    for index, each in enumerate(items(policy, "classes")):
        if not isinstance(each, dict):
            continue
        name = each.get("name")
        if isinstance(name, str):
            if name in seen:
                yield ("classes", index, "name"), f"the class {quote(name)} is defined twice"
            seen.add(name)
        least, most = size(each, "default_scratch"), size(each, "max_scratch")
        if each.get("scratch") == "required" and "max_scratch" not in each:
            yield ("classes", index), f"the class {quote(name)} requires scratch and needs 'max_scratch'"
        elif least is not None and "max_scratch" not in each:
            yield ("classes", index, "default_scratch"), "default_scratch without 'max_scratch': no scratch is allowed"
        if least is not None and most is not None and least > most:
            yield ("classes", index, "default_scratch"), "default_scratch is larger than max_scratch"
        if each.get("private_tmp") == "scratch" and each.get("scratch") != "required":
            yield ("classes", index, "private_tmp"), "'private_tmp: scratch' needs 'scratch: required'"
        usual, longest = duration(each, "default_time", 0.0), duration(each, "max_time", float("inf"))
        if usual is not None and longest is not None and usual > longest:
            yield ("classes", index, "default_time"), "default_time is longer than max_time"


def _class_names(policy: Raw) -> set[str]:
    names = {each.get("name") for each in items(policy, "classes") if isinstance(each, dict)}
    return {name for name in names if isinstance(name, str)}


def _partitions(policy: Raw) -> Findings:
    places, classes = set(section(policy, "jurisdictions")), _class_names(policy)
    for name, partition in mappings(policy, "partitions"):
        yield from known(partition, ("partitions", name, "jurisdiction"), places, "jurisdiction")
        where = ("partitions", name, "least_class")
        yield from known(partition, where, classes, "class")
        if "least_class" in partition and partition.get("demand_tag") is not True:
            yield where, "least_class without 'demand_tag: true': jobs without a tag would run there"


def _names_in(policy: Raw, where: str) -> set[str]:
    return _class_names(policy) if where == "classes" else set(section(policy, where))


def _references(policy: Raw, where: str, words: tuple[tuple[str, str, str], ...]) -> Findings:
    for name, entry in mappings(policy, where):
        for key, target, singular in (*words, ("includes", where, where.removesuffix("s"))):
            names = _names_in(policy, target)
            for index, word in texts(entry, key):
                if word not in names:
                    yield (where, name, key, index), unknown(word, names, singular)
        if where == "datasets":
            yield from known(entry, (where, name, "class"), _class_names(policy), "class")


def _included(policy: Raw, where: str) -> dict[str, list[str]]:
    return {name: [word for _, word in texts(entry, "includes")] for name, entry in mappings(policy, where)}


def _circles(policy: Raw, where: str) -> Findings:
    for name, way in cycles(_included(policy, where)).items():
        shown = ", ".join(f"{one} includes {other}" for one, other in pairwise(way))
        yield (where, name, "includes"), f"goes round in a circle: {shown}"


def _datasets(policy: Raw) -> Findings:
    """A dataset that includes others must leave a place where all of them may be used."""
    included, entries = _included(policy, "datasets"), dict(mappings(policy, "datasets"))
    for name, entry in entries.items():
        if not included[name]:
            continue
        together = [_places(policy, entries[each]) for each in closure([name], included) if each in entries]
        if min(map(len, together)) and not frozenset.intersection(*together):
            yield (
                ("datasets", name, "includes" if "includes" in entry else "residency"),
                "there is no jurisdiction in which this and all that it includes may be used",
            )


def _places(policy: Raw, dataset: Raw) -> frozenset[str]:
    own = frozenset(word for _, word in texts(dataset, "residency"))
    if dataset.get("transfers") != "adequate":
        return own
    places = dict(mappings(policy, "jurisdictions"))
    return own.union(word for name in own if name in places for _, word in texts(places[name], "adequate"))


def _shadow(policy: Raw) -> Findings:
    for rule in section(policy, "shadow"):
        if rule not in SHADOWABLE:
            hint = did_you_mean(rule, sorted(SHADOWABLE)) or f"; those that can: {', '.join(sorted(SHADOWABLE))}"
            yield ("shadow", rule), f"{quote(rule)} is no rule that can be in shadow{hint}"
