"""Parameters in three forms: the user's pytree, the flat vector θ of its free entries, and the unconstrained vector u.

A `Layout` converts between them and names every entry. It is static (hashable, no arrays), so it can be an argument
of a jitted function and part of a result's structure. Its methods take arrays of numpy, which then computes, or of JAX, and
keep leading axes, those of many fits.

θ and u hold the parameters in the order in which the user wrote the keys of a dictionary. JAX sorts them wherever a dictionary
passes through it, so the order is read off the user's own dictionary (`key_order`), kept in the layout, and given back to every
dictionary that the layout makes. Array leaves (`Values`) are in JAX's order.
"""

import functools
import math
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from fisher_jax.errors import check_pytree, check_pytrees, is_number, shown
from fisher_jax.input_arrays import as_unmasked_array
from fisher_jax.models.constraints import Bounds, Constraint, Fixed, Unconstrained, as_constraint, interval, is_bounds
from fisher_jax.numerics.array_namespace import AnyArray, namespace

Values = list[Any]  # the array leaves of params, in pytree order, fixed ones included
Path = tuple[Any, ...]  # keys, indices and names that lead to a leaf
Constraints = tuple[tuple[Path, Constraint | Bounds], ...]  # by path
EntryNames = tuple[tuple[Path, tuple[str, ...]], ...]  # names for the entries of a leaf, by path
# The keys of a dictionary as they were written, None for a list or a tuple, and the order below each entry; None for JAX's order.
KeyOrder = tuple[tuple[Any, ...] | None, tuple[Any, ...]] | None


@dataclass(frozen=True)
class Declarations:
    """What a model declares about its parameters, hashable: constraints, and names of entries, by path."""

    constraints: Constraints = ()
    names: EntryNames = ()


NO_DECLARATIONS = Declarations()


_SILENT = np.errstate(all="ignore")  # the statuses report infinities and NaN, in numpy as in JAX


@dataclass(frozen=True)
class Leaf:
    """One array leaf of `params`; `given_names` are the names of its entries where the user gave them."""

    name: str
    shape: tuple[int, ...]
    free_shape: tuple[int, ...]
    constraint: Constraint
    given_names: tuple[str, ...] = ()

    @functools.cached_property
    def size(self) -> int:
        return math.prod(self.shape)

    @functools.cached_property
    def free_size(self) -> int:
        return math.prod(self.free_shape)

    @property
    def is_fixed(self) -> bool:
        return isinstance(self.constraint, Fixed)

    @property
    def entry_names(self) -> tuple[str, ...]:
        """`beta` of shape (2,) gives beta[0] and beta[1], unless the user named its entries."""
        if self.given_names:
            return self.given_names
        indices = np.ndindex(self.shape)
        return tuple(f"{self.name}[{','.join(map(str, index))}]" if index else self.name for index in indices)


@dataclass(frozen=True)
class Layout:
    """How a pytree of parameters, θ (length q) and u (length p) correspond.

    `leaves` are the array leaves in pytree order; `treedef` and `statics` put the pytree together again, statics being the
    leaves that are no arrays (the functions in an Equinox module), and `key_order` its dictionaries in the user's order.
    """

    leaves: tuple[Leaf, ...]
    dtype: np.dtype
    treedef: Any
    statics: tuple[Any, ...]
    key_order: KeyOrder = None

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is made from the pytree with a number in place of each leaf: a treedef alone cannot always be copied."""
        skeleton = jax.tree.unflatten(self.treedef, range(len(self.statics)))
        return _layout_from, (self.leaves, self.dtype, skeleton, self.statics, self.key_order)

    @functools.cached_property
    def order(self) -> tuple[int, ...]:
        """The indices of `leaves` in the order in which the user wrote them."""
        arrays = [k for k, static in enumerate(self.statics) if static is _ARRAY]
        if self.key_order is None:
            return tuple(range(len(arrays)))
        place = {k: i for i, k in enumerate(arrays)}
        skeleton = jax.tree.unflatten(self.treedef, range(len(self.statics)))
        return tuple(place[k] for k in _leaves_in_order(skeleton, self.key_order) if k in place)

    @functools.cached_property
    def free_leaves(self) -> tuple[tuple[int, Leaf], ...]:
        """The leaves that are estimated, each with its index among `leaves`, in the order in which the user wrote them."""
        return tuple((i, self.leaves[i]) for i in self.order if not self.leaves[i].is_fixed)

    @functools.cached_property
    def entries_sorted_by_jax(self) -> np.ndarray:
        """Where each entry of θ is when JAX flattens the pytree: the index that puts an array in that order in the user's."""
        starts, start = {}, 0
        for i, leaf in sorted(self.free_leaves):
            starts[i], start = start, start + leaf.size
        return np.concatenate([starts[i] + np.arange(leaf.size) for i, leaf in self.free_leaves])

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The name of every entry of θ."""
        return tuple(name for _, leaf in self.free_leaves for name in leaf.entry_names)

    @functools.cached_property
    def free_names(self) -> tuple[str, ...]:
        """Names for the entries of u: those of θ where they correspond one to one."""
        names: list[str] = []
        for _, leaf in self.free_leaves:
            same = leaf.free_size == leaf.size
            names += leaf.entry_names if same else [f"{leaf.name}, free coordinate {k}" for k in range(leaf.free_size)]
        return tuple(names)

    @functools.cached_property
    def num_free(self) -> int:
        """p: the length of u, which is the number of parameters estimated."""
        return sum(leaf.free_size for _, leaf in self.free_leaves)

    @functools.cached_property
    def unitless(self) -> tuple[bool, ...]:
        """For each entry of u, whether it is on a scale without a unit (a logarithm, a logit)."""
        return tuple(
            bool(entry) for _, leaf in self.free_leaves for entry in np.ravel(leaf.constraint.unitless(leaf.free_shape))
        )

    def natural(self) -> "Layout":
        """The same parameters without their constraints (but for `fixed`): its u is θ itself."""
        leaves = (
            leaf if leaf.is_fixed else replace(leaf, free_shape=leaf.shape, constraint=Unconstrained())
            for leaf in self.leaves
        )
        return Layout(tuple(leaves), self.dtype, self.treedef, self.statics, self.key_order)

    @_SILENT
    def unconstrain(self, values: Values) -> Float[AnyArray, "*b p"]:
        """u of the parameters."""
        parts = {
            i: leaf.constraint.inverse(namespace(values[i]).asarray(values[i], self.dtype))
            for i, leaf in self.free_leaves
        }
        return self._in_one_row(parts, "free_shape")

    def constrain(self, free: Float[AnyArray, "*b p"], values: Values) -> PyTree:
        """The parameters of u; fixed leaves are taken from `values`."""
        return self.assemble(self.constrained_values(free, values))

    @_SILENT
    def constrained_values(self, free: Float[AnyArray, "*b p"], values: Values) -> Values:
        """The array leaves of u's parameters."""
        result = list(values)
        for i, leaf, part in self._parts(free):
            result[i] = leaf.constraint.forward(part).reshape((*free.shape[:-1], *leaf.shape))
        return result

    def _parts(self, free: Float[AnyArray, "*b p"]) -> Iterator[tuple[int, Leaf, Any]]:
        """The entries of u that belong to each leaf, in their shape."""
        start = 0
        for i, leaf in self.free_leaves:
            part = free[..., start : start + leaf.free_size]
            yield i, leaf, part.reshape((*free.shape[:-1], *leaf.free_shape))
            start += leaf.free_size

    def _in_one_row(self, arrays: dict[int, Any], shape: str) -> Float[AnyArray, "*b k"]:
        """An array for each free leaf, raveled and joined along the last axis; `shape` names the one it has without a batch."""
        if not arrays:
            return np.zeros((0,), self.dtype)
        rows = []
        for i, leaf in self.free_leaves:
            of_leaf: tuple[int, ...] = getattr(leaf, shape)
            leading = np.shape(arrays[i])[: np.ndim(arrays[i]) - len(of_leaf)]
            rows.append(arrays[i].reshape((*leading, math.prod(of_leaf))))
        return namespace(rows).concatenate(rows, axis=-1)

    def assemble(self, values: Values) -> PyTree:
        """The pytree whose array leaves are `values`."""
        arrays = iter(values)
        tree = jax.tree.unflatten(self.treedef, [next(arrays) if s is _ARRAY else s for s in self.statics])
        return in_key_order(tree, self.key_order)

    def blocks(self, tree: PyTree) -> list[Any]:
        """The subtree of a pytree in the place of each array leaf."""
        subtrees = self.treedef.flatten_up_to(tree)
        return [block for block, static in zip(subtrees, self.statics, strict=True) if static is _ARRAY]

    def flatten(self, params: PyTree) -> Float[AnyArray, "*b q"]:
        """θ: the free leaves of a pytree with this structure, raveled and joined."""
        return self.join(self.blocks(params))

    def join(self, values: Values) -> Float[AnyArray, "*b q"]:
        """θ of the array leaves."""
        arrays = {i: namespace(values[i]).asarray(values[i], self.dtype) for i, _ in self.free_leaves}
        return self._in_one_row(arrays, "shape")

    def split(self, theta: Float[AnyArray, "*b q"], fill: Any) -> Values:
        """Array leaves of numbers that belong to the entries of θ; fixed leaves hold `fill`."""
        batch, xp = theta.shape[:-1], namespace(theta)
        result, start = [xp.full(batch + leaf.shape, fill, self.dtype) for leaf in self.leaves], 0
        for i, leaf in self.free_leaves:
            result[i] = theta[..., start : start + leaf.size].reshape(batch + leaf.shape)
            start += leaf.size
        return result

    @_SILENT
    def jacobian(self, free: Float[AnyArray, "*b p"]) -> Float[AnyArray, "*b q p"]:
        """D = ∂θ/∂u: a block for each leaf along the diagonal."""
        xp, rows, start = namespace(free), [], 0
        for _, leaf, part in self._parts(free):
            block = leaf.constraint.jacobian(part, len(leaf.free_shape))
            before, after = start, self.num_free - start - leaf.free_size
            sides = [xp.zeros((*block.shape[:-1], width), block.dtype) for width in (before, after)]
            rows.append(xp.concatenate([sides[0], block, sides[1]], axis=-1))
            start += leaf.free_size
        return xp.concatenate(rows, axis=-2) if rows else xp.zeros((*free.shape[:-1], 0, 0), self.dtype)

    @_SILENT
    def coordinates(self, free: Float[AnyArray, "*b p"]) -> Float[AnyArray, "*b q"]:
        """θ with each entry transformed to the whole real line, where its constraint has such a transform."""
        parts = {i: leaf.constraint.coordinate(part) for i, leaf, part in self._parts(free)}
        return self._in_one_row(parts, "shape")

    def edges(self) -> np.ndarray:
        """The ends of the range of each entry of θ, (q, 2)."""
        pairs = [
            np.stack([np.ravel(end) for end in leaf.constraint.edges(leaf.shape)], -1) for _, leaf in self.free_leaves
        ]
        return np.concatenate(pairs) if pairs else np.zeros((0, 2))

    def contains(self, values: Values) -> list[Any]:
        """For each free leaf, whether its value lies strictly inside its constraint; by numpy where it is not traced."""
        result = []
        for i, leaf in self.free_leaves:
            xp = jnp if isinstance(values[i], jax.core.Tracer) else np
            result.append(leaf.constraint.contains(xp.asarray(values[i], self.dtype)))
        return result


class _ArrayMark:
    """Marks the place of an array in `Layout.statics`."""

    def __repr__(self) -> str:
        return "array"

    def __reduce__(self) -> str:
        return "_ARRAY"  # there is one, also after pickling


_ARRAY = _ArrayMark()


def _layout_from(
    leaves: tuple[Leaf, ...], dtype: np.dtype, skeleton: PyTree, statics: tuple[Any, ...], order: KeyOrder
) -> Layout:
    return Layout(leaves, dtype, jax.tree.structure(skeleton), statics, order)


def key_order(tree: PyTree) -> KeyOrder:
    """How the dictionaries of a pytree, and those in its lists and tuples, were written; None where that is JAX's order.

    In containers of other kinds (modules, dataclasses) JAX's order stands.
    """
    if type(tree) is dict:
        keys, below = tuple(tree), tuple(map(key_order, tree.values()))
        is_sorted = all(map(operator.le, keys, keys[1:]))
        return None if is_sorted and not any(below) else (keys, below)
    if isinstance(tree, list | tuple):
        below = tuple(map(key_order, tree))
        return (None, below) if any(below) else None
    return None


def in_key_order(tree: PyTree, order: KeyOrder) -> PyTree:
    """A pytree that JAX made, with the keys of its dictionaries in the order in which the user wrote them."""
    if order is None:
        return tree
    keys, below = order
    if keys is not None:
        return {key: in_key_order(tree[key], part) for key, part in zip(keys, below, strict=True)}
    parts = map(in_key_order, tree, below)
    return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)


def _leaves_in_order(tree: PyTree, order: KeyOrder) -> list[Any]:
    """The leaves in the order in which the user wrote the keys."""
    if order is None:
        return jax.tree.leaves(tree)
    keys, below = order
    parts = tree if keys is None else [tree[key] for key in keys]
    return [leaf for part, its_order in zip(parts, below, strict=True) for leaf in _leaves_in_order(part, its_order)]


def names_by_path(names: PyTree) -> EntryNames:
    """A user's tree of names for the entries of vectors as pairs of a path and the names, hashable."""
    if names is None:
        return ()
    check_pytree(names, "names")

    def is_list(tree: Any) -> bool:
        return isinstance(tree, list | tuple) and all(isinstance(name, str) for name in tree)

    table = []
    for path, given in jax.tree_util.tree_flatten_with_path(names, is_leaf=is_list)[0]:
        if not is_list(given) or not given:
            raise TypeError(
                f"names of `{path_name(path)}` are {shown(given)}; expected the names of its entries, as in "
                "{'beta': ('intercept', 'age')}."
            )
        table.append((tuple(_raw(key) for key in path), tuple(given)))
    return tuple(table)


def constraints_by_path(constraints: PyTree) -> Constraints:
    """A user's tree of constraints as pairs of a path and a constraint, hashable."""
    check_pytree(constraints, "constraints")

    leaves, _ = jax.tree_util.tree_flatten_with_path(
        constraints, is_leaf=lambda x: as_constraint(x) is not None or is_bounds(x)
    )
    table: list[tuple[tuple[Any, ...], Constraint | Bounds]] = []
    for path, given in leaves:
        constraint: Constraint | Bounds | None = as_constraint(given)
        if is_bounds(given):
            if given[0] is not None and given[1] is not None and not given[0] < given[1]:
                raise ValueError(f"the bounds of `{path_name(path)}` are {given}; expected (low, high), low < high.")
            constraint = Bounds(interval(*given))
        if constraint is None:
            hint = " A range is written as a tuple, (low, high)." if is_number(given) else ""
            raise TypeError(
                f"the constraint of `{path_name(path)}` is {shown(given)}, which is neither one of fisher_jax's "
                f"constraints, nor None, nor bounds (low, high), nor a bijector with methods `forward` and `inverse`.{hint}"
            )
        table.append((tuple(_raw(key) for key in path), constraint))
    return tuple(table)


def layout_of(params: PyTree, declarations: Declarations = NO_DECLARATIONS) -> tuple[Layout, Values]:
    """The layout of a user's parameters, and their array leaves. Integers become floating numbers, unless `fixed`."""
    check_pytrees(params=params)
    leaves, treedef = jax.tree.flatten(as_parameters(params))
    default = jax.dtypes.canonicalize_dtype(np.float64)
    layout = _cached_layout(treedef, tuple(map(_signature, leaves)), default, declarations, key_order(params))
    return layout, [leaf for leaf, static in zip(leaves, layout.statics, strict=True) if static is _ARRAY]


def as_parameters(params: PyTree) -> PyTree:
    """Parameters with arrays that JAX takes: in native byte order, without masks. Python's numbers and statics stay."""
    leaves, treedef = jax.tree.flatten(params)
    if all(isinstance(leaf, float | int) or _is_plain(leaf) for leaf in leaves):
        return params

    def decode(k: int, leaf: Any) -> Any:
        if not hasattr(leaf, "__array__") or isinstance(leaf, float) or _is_plain(leaf):
            return leaf

        def name() -> str:
            return f"parameter `{path_name(jax.tree_util.tree_flatten_with_path(params)[0][k][0])}`"

        return as_unmasked_array(leaf, name, "Give a number for each.")

    decoded = jax.tree.unflatten(treedef, [decode(k, leaf) for k, leaf in enumerate(leaves)])
    return in_key_order(decoded, key_order(params))


def _is_plain(leaf: Any) -> bool:
    """Whether a leaf is an array that needs no decoding. Its dtype is checked by the layout."""
    return isinstance(leaf, jax.Array) or (type(leaf) is np.ndarray and leaf.dtype.isnative)


def typed(layout: Layout, values: Values) -> Values:
    """The values with Python's numbers, and integers that are to be estimated, as the arrays that a fit returns.

    So a fit that starts from the result of another compiles nothing anew.
    """

    def with_type(leaf: Leaf, value: Any) -> Any:
        if isinstance(value, bool):
            return value
        if isinstance(value, int | float):
            return np.asarray(value, jnp.int_ if leaf.is_fixed and isinstance(value, int) else layout.dtype)
        estimated = not leaf.is_fixed and jnp.issubdtype(value.dtype, jnp.integer)
        return value.astype(layout.dtype) if estimated else value

    return [with_type(leaf, value) for leaf, value in zip(layout.leaves, values, strict=True)]


def _signature(leaf: Any) -> Any:
    """What the layout depends on of a leaf: shape and dtype, or Python's type; the leaf itself where it is no array."""
    if isinstance(leaf, bool | int | float):
        return ((), type(leaf))
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return (tuple(leaf.shape), leaf.dtype)
    return _Static(leaf)


@dataclass(frozen=True)
class _Static:
    """A leaf that is no array, compared by identity."""

    leaf: Any

    def __hash__(self) -> int:
        return id(self.leaf)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and other.leaf is self.leaf


@functools.lru_cache(maxsize=1024)
def _cached_layout(
    treedef: Any, signature: tuple[Any, ...], default: np.dtype, declarations: Declarations, order: KeyOrder
) -> Layout:
    """The layout of leaves like these; `default` is JAX's floating dtype, which is a setting that may change."""
    skeleton = jax.tree.unflatten(treedef, range(len(signature)))
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(skeleton)[0]]
    constraints = _match(declarations.constraints, paths)
    statics = tuple(kind.leaf if isinstance(kind, _Static) else _ARRAY for kind in signature)
    leaves = tuple(
        _make_leaf(path_name(path), kind, constraint)
        for path, kind, constraint in zip(paths, signature, constraints, strict=True)
        if not isinstance(kind, _Static)
    )
    if declarations.names:
        of_leaves = [path for path, kind in zip(paths, signature, strict=True) if not isinstance(kind, _Static)]
        leaves = _with_names(leaves, of_leaves, dict(declarations.names))
    if not leaves:
        raise ValueError("params holds no array. Give a pytree of floating numbers, as in {'scale': 1.0}.")
    kinds = [kind for kind in signature if not isinstance(kind, _Static)]
    return Layout(leaves, _floating_dtype(kinds, leaves, default), treedef, statics, order)


def _with_names(leaves: tuple[Leaf, ...], paths: list[Any], names: dict[Path, tuple[str, ...]]) -> tuple[Leaf, ...]:
    """The leaves with the names that the user gave to their entries."""
    named = []
    for leaf, path in zip(leaves, paths, strict=True):
        given = names.pop(tuple(map(_raw, path)), ())
        if given and len(given) != leaf.size:
            raise ValueError(
                f"names of `{leaf.name}` has {len(given)} names, but the parameter has shape {leaf.shape}: give "
                f"{leaf.size}, one for each entry."
            )
        named.append(replace(leaf, given_names=given))
    if names:
        unknown = [".".join(map(str, path)) for path in names]
        raise ValueError(
            f"names are given for {_listed(unknown)}, but params has {_listed(leaf.name for leaf in leaves)}. Spell the key of "
            "names as the parameter's."
        )
    every = [name for leaf in named for name in leaf.entry_names]
    every += [leaf.name for leaf in named if leaf.shape]
    if twice := sorted({name for name in every if every.count(name) > 1}):
        raise ValueError(f"names: {_listed(twice)} would name several entries. Give each entry a name of its own.")
    return tuple(named)


def _floating_dtype(kinds: list[Any], leaves: tuple[Leaf, ...], default: np.dtype) -> np.dtype:
    """The widest floating dtype among arrays, and the default where Python's numbers or integers are among them, or alone.

    numpy's float64 counts as JAX converts it: to float32 unless x64 is enabled. A fixed integer array is an index or a count and
    does not count.
    """
    dtypes = [dtype for _, dtype in kinds if not isinstance(dtype, type) and jnp.issubdtype(dtype, jnp.floating)]
    numbers = any(
        isinstance(dtype, type) or (jnp.issubdtype(dtype, jnp.integer) and not leaf.is_fixed)
        for (_, dtype), leaf in zip(kinds, leaves, strict=True)
    )
    dtypes = [*dtypes, default] if numbers or not dtypes else dtypes
    # Converted one by one: JAX warns of a float64 that it is asked for and does not have.
    return np.dtype(jnp.result_type(*map(jax.dtypes.canonicalize_dtype, dtypes)))


def _match(table: Constraints, paths: list[Any]) -> list[Constraint]:
    """The constraint of each path: the one given at the path or at a container above it."""
    given, used, result = dict(table), set(), []
    for path in paths:
        raw = tuple(_raw(key) for key in path)
        above = [raw[:k] for k in range(len(raw) + 1) if raw[:k] in given]
        used.update(above)
        constraint = given[above[0]] if above else Unconstrained()
        if isinstance(constraint, Bounds):
            place = len(above[0])
            if place < len(path) and isinstance(path[place], jax.tree_util.SequenceKey):
                raise ValueError(
                    f"the constraint of `{path_name(path[:place])}` is a tuple of numbers, and its parameters are in a sequence: "
                    "bounds for all of them, or one each? Write interval(low, high) for all, or a constraint for each."
                )
            constraint = constraint.constraint
        result.append(constraint)
    unused = [".".join(map(str, path)) for path, c in table if path not in used and c.restricts]
    if unused:
        raise ValueError(
            f"constraints name {_listed(unused)}, but params has {_listed(map(path_name, paths))}. "
            "Spell the constraint's key as the parameter's."
        )
    return result


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _raw(key: Any) -> Any:
    """The key, index or name in a step of a path, whatever kind of container it leads into."""
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return getattr(key, attribute)
    return key


def _make_leaf(name: str, kind: Any, constraint: Constraint) -> Leaf:
    shape, given = kind
    if isinstance(constraint, Fixed):
        return Leaf(name, shape, (0,), constraint)
    real = isinstance(given, type) or any(jnp.issubdtype(given, kind) for kind in (jnp.floating, jnp.integer))
    if given is bool or not real:
        raise TypeError(
            f"parameter `{name}` has dtype {getattr(given, '__name__', given)}; parameters are real numbers. "
            "Write it as a float, or constrain it with fisher_jax.fixed if it is not to be estimated."
        )
    try:
        free_shape = constraint.free_shape(shape)
    except ValueError as error:
        raise ValueError(f"parameter `{name}` of shape {shape}: {error}") from error
    return Leaf(name, shape, free_shape, constraint)


def path_name(path: Any) -> str:
    """`beta[0]`, `scale`, `layers[1].weight`: a leaf's path as a person would write it."""
    text = ""
    for key in path:
        if isinstance(key, jax.tree_util.DictKey):
            text += f".{key.key}" if isinstance(key.key, str) else f"[{key.key!r}]"
        elif isinstance(key, jax.tree_util.GetAttrKey):
            text += f".{key.name}"
        else:
            text += f"[{getattr(key, 'idx', getattr(key, 'key', key))}]"
    return text.removeprefix(".") or "params"


def split_by(mapped: tuple[bool, ...], leaves: list[Any]) -> tuple[list[Any], list[Any]]:
    """The leaves that differ among the data sets, and those that all share."""
    different = [leaf for leaf, differs in zip(leaves, mapped, strict=True) if differs]
    return different, [leaf for leaf, differs in zip(leaves, mapped, strict=True) if not differs]


def merge(mapped: tuple[bool, ...], different: list[Any], shared: list[Any]) -> list[Any]:
    """The leaves in their order: the inverse of `split_by`."""
    of_each, of_all = iter(different), iter(shared)
    return [next(of_each) if differs else next(of_all) for differs in mapped]
