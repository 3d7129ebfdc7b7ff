"""torch-fidelity's InceptionV3 with random weights."""

import importlib
import importlib.util
import sys
import types


def fidelity(module):
    """A module of torch-fidelity, whose package would import torchvision too."""
    if "torch_fidelity" not in sys.modules:
        package = types.ModuleType("torch_fidelity")
        spec = importlib.util.find_spec("torch_fidelity")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["torch_fidelity"] = package
        helpers = types.ModuleType("torch_fidelity.utils")  # of its data loading, unused here
        helpers.__getattr__ = lambda name: None
        sys.modules["torch_fidelity.utils"] = helpers
    return importlib.import_module(f"torch_fidelity.{module}")


def make_inception(path):
    """(path of a weights file with random weights, the network with them)."""
    import torch

    module = fidelity("feature_extractor_inceptionv3")
    torch.manual_seed(0)
    class_ = module.FeatureExtractorInceptionV3
    # The constructor insists on a file: it is given the state of its own fresh layers.
    original, module.torch.load = module.torch.load, lambda *args, **kwargs: {}
    loader, class_.load_state_dict = class_.load_state_dict, lambda self, state: None
    names = ["64", "2048", "logits_unbiased"]
    network = class_("inception", names, feature_extractor_weights_path=str(path))
    module.torch.load, class_.load_state_dict = original, loader
    for name, value in network.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_(0.0, 0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif name.endswith("bn.weight"):
            value.uniform_(0.8, 1.6)
        elif name.endswith("bn.bias"):
            value.normal_(0.0, 0.1)
    torch.save(network.state_dict(), path)
    return path, network
