// The Python module. MLX's own arrays go in and come out: the module is bound in MLX's domain of nanobind, which takes a
// nanobind of the same ABI and the very mlx that it was built against.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "layer.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace osaurus::shim;

NB_MODULE(_native, module) {
    nb::module_::import_("mlx.core");
    // Whoever can import this can use it.
    use("");

    nb::class_<PackedWeights>(module, "Weights")
        .def_ro("packed", &PackedWeights::packed)
        .def_ro("matrices", &PackedWeights::matrices)
        .def_prop_ro("rows", [](const PackedWeights& self) { return self.shape.rows; })
        .def_prop_ro("columns", [](const PackedWeights& self) { return self.shape.columns; });
    nb::class_<osaurus::Arena>(module, "Arena").def(nb::init<>());
    nb::class_<Rotation>(module, "Rotation")
        .def(nb::init<std::vector<double>, bool>(), "frequencies"_a, "neighbours"_a)
        .def_ro("width", &Rotation::width);
    nb::class_<Layer>(module, "Layer")
        .def(nb::init<int, float, const Rotation&, const std::pair<NormParts, NormParts>&,
                      const std::optional<std::pair<NormParts, NormParts>>&, const std::vector<MatrixParts>&,
                      const std::vector<MatrixParts>&, const std::string&>(),
             "heads"_a, "scale"_a, "rotation"_a, "norms"_a, "head_norms"_a.none(), "projections"_a, "network"_a, "gate"_a)
        .def("begin", &Layer::begin, "x"_a, "keys"_a, "values"_a, "first"_a, "offset"_a = 0, "offsets"_a = nb::none())
        .def("finish", &Layer::finish, "x"_a, "projected"_a, "keys"_a, "values"_a, "seen"_a, "mask"_a = nb::none());

    module.def(
        "pack",
        [](const mx::array& values, const mx::array& scales, const mx::array& biases, int bits, int group,
           osaurus::Arena* arena) {
            osaurus::Arena own;
            return std::make_shared<PackedWeights>(pack(values, scales, biases, bits, group, arena ? *arena : own));
        },
        "values"_a, "scales"_a, "biases"_a, "bits"_a, "group"_a, "arena"_a = nb::none(), nb::call_guard<nb::gil_scoped_release>());
    module.def(
        "matmul",
        [](const mx::array& x, const std::shared_ptr<PackedWeights>& weights, const std::optional<mx::array>& bias) {
            return matmul(x, {weights}, {bias})[0];
        },
        "x"_a, "weights"_a, "bias"_a = nb::none());
    module.def("matmul_several", &matmul, "x"_a, "weights"_a, "biases"_a);
    module.def("gated_matmul", &gated_matmul, "x"_a, "a"_a, "b"_a, "gate"_a, "a_bias"_a = nb::none(),
               "b_bias"_a = nb::none());
    module.def("gather_matmul", &gather_matmul, "x"_a, "weights"_a, "indices"_a);
    module.def("rows_of", &rows_of, "weights"_a, "indices"_a);
    module.def("rms_norm", &rms_norm, "x"_a, "weight"_a.none(), "epsilon"_a);
    module.def("glu", &glu, "x"_a, "y"_a, "gate"_a);
    module.def("log_sum_exp", &log_sum_exp, "x"_a);
    module.def("argmax", &argmax, "x"_a);
    module.def("candidates", &candidates, "logits"_a, "temperatures"_a, "count"_a);
    module.def("rotate", &rotate, "rotation"_a, "x"_a, "offset"_a = 0, "offsets"_a = nb::none());
    module.def("attention", &attention, "queries"_a, "keys"_a, "values"_a, "scale"_a, "causal"_a = false, "window"_a = 0,
               "mask"_a = nb::none(), "sinks"_a = nb::none());
    module.def("push", &push, "kept"_a, "places"_a, "end"_a);

    module.def("use", &use, "name"_a = "");
    module.def("kernels", [] { return std::string(kernels().name); });
    module.def("available", [] {
        std::vector<std::string> found;
        for (const char* const* name = osaurus::names(); *name; name++) found.emplace_back(*name);
        return found;
    });
    module.def("set_threads", &osaurus::set_threads, "count"_a, nb::call_guard<nb::gil_scoped_release>());
    module.def("threads", [] { return osaurus::pool().threads(); });
}
