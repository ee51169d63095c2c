"""The same weights and masks in lightly's parts give the same numbers."""

import torch
import torch.nn.functional as F
from lightly.models import utils
from lightly.models.modules import IJEPAPredictorTIMM

from sslpipe.encoders.patches import sincos, take
from sslpipe.methods import mae, simmim
from sslpipe.methods.ijepa import JEPAPredictor
from sslpipe.methods.parts.patches import padded

from . import masked


def test_the_predictor_is_lightlys(rand):
    torch.manual_seed(0)
    ours = JEPAPredictor(24, masked.GRID, dim=16, heads=2, depth=2).eval()
    theirs = IJEPAPredictorTIMM(
        num_patches=16, depth=2, mlp_dim=24, predictor_embed_dim=16, num_heads=2
    ).eval()
    positions = ours.positions_ND[None]
    torch.testing.assert_close(theirs.decoder.pos_embed, positions)
    theirs.load_state_dict(renamed(ours.state_dict()) | {"decoder.pos_embed": positions})
    context = masked.choose(torch.full((1, 3), 7), 0)[0]
    targets = masked.choose(torch.full((2, 3), 3), 1)
    shown = padded(context, context.sum(-1).numpy())
    asked = padded(targets.flatten(0, 1), targets.sum(-1).numpy())
    tokens = rand(3, 7, 24).float()
    expected = theirs(tokens, shown.index_BS, list(asked.index_BS.view(2, 3, 3)))
    torch.testing.assert_close(ours(tokens, shown, asked), expected)


def renamed(state):
    """Our names of the predictor's weights -> lightly's."""
    outer = {"embed": "predictor_embed", "predict": "predictor_proj"}
    names = {name: name.split(".")[0] for name in state}
    found = {
        name.replace(first, outer[first], 1) if first in outer else f"decoder.{name}": state[name]
        for name, first in names.items()
    }
    return found | {"decoder.mask_token": found.pop("decoder.mask_token_11D")}


def test_patches_are_taken_as_lightlys_masks_take_them(rand):
    tokens = rand(3, 16, 5)
    chosen = masked.choose(torch.full((2, 3), 4), 0)
    index = padded(chosen.flatten(0, 1), chosen.sum(-1).numpy()).index_BS
    assert take(tokens.repeat(2, 1, 1), index).equal(
        utils.apply_masks(tokens, list(index.view(2, 3, 4)))
    )


def test_pixel_losses_are_those_of_lightlys_examples(rand):
    """They take the hidden patches out by index, then torch's own loss."""
    images, pred = rand(3, 3, 16, 16), rand(3, 16, 48)
    hidden = masked.choose(torch.full((1, 3), 12), 0)[0]
    patches = utils.patchify(images, 4)
    targets = utils.normalize_mean_var(patches)[hidden]
    loss = mae.mae_loss(pred, images, hidden, patch_size=4)
    torch.testing.assert_close(loss, F.mse_loss(pred[hidden], targets))
    whole = utils.unpatchify(pred, 4)
    loss = simmim.simmim_loss(whole, images, hidden, patch_size=4)
    torch.testing.assert_close(loss, F.l1_loss(pred[hidden], patches[hidden]))


def test_positions_are_lightlys():
    theirs = utils.get_2d_sine_cosine_positional_embedding(24, 4)
    torch.testing.assert_close(sincos(24, (4, 4))[0], torch.from_numpy(theirs).float())
