from tests.azurite_fixture import azurite as azurite
