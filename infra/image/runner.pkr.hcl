// Golden images for runnerpool: Ubuntu 24.04 with runner, git and Docker, for x64 and for arm64, into a compute gallery.
// README.md beside this file has the commands; .github/workflows/golden-image.yml builds both every week.

packer {
  required_version = ">= 1.9"
  required_plugins {
    azure = {
      source  = "github.com/hashicorp/azure"
      version = "~> 2"
    }
  }
}

variable "subscription_id" {
  type = string
}

variable "resource_group" {
  description = "Holds the gallery and, while an image is built, the VM from which it is taken."
  type        = string
  default     = "hw-rg"
}

variable "gallery" {
  type    = string
  default = "hw_gallery"
}

variable "replication_regions" {
  description = "Where pools use the image, as azure.location of their pool file."
  type        = list(string)
  default     = ["westus"]
}

variable "image_version" {
  description = "Three numbers: year, month and day, and the build."
  type        = string
}

variable "runner_version" {
  type = string
}

variable "runner_sha256" {
  description = "Of the package for the architecture that is built. GitHub shows it with the release."
  type        = map(string)
}

locals {
  releases = "https://github.com/actions/runner/releases/download"
}

source "azure-arm" "ubuntu" {
  use_azure_cli_auth = true // `az login`, or azure/login in a workflow
  subscription_id    = var.subscription_id

  build_resource_group_name = var.resource_group
  os_type                   = "Linux"
  image_publisher           = "Canonical"
  image_offer               = "ubuntu-24_04-lts"
  ssh_username              = "packer"
  azure_tags                = { purpose = "golden-image" }
}

build {
  source "azure-arm.ubuntu" {
    name      = "x64"
    image_sku = "server"
    vm_size   = "Standard_D4ads_v5"
    shared_image_gallery_destination {
      subscription        = var.subscription_id
      resource_group      = var.resource_group
      gallery_name        = var.gallery
      image_name          = "runner-ubuntu-2404-x64"
      image_version       = var.image_version
      replication_regions = var.replication_regions
    }
  }

  source "azure-arm.ubuntu" {
    name      = "arm64"
    image_sku = "server-arm64"
    vm_size   = "Standard_D4pds_v5"
    shared_image_gallery_destination {
      subscription        = var.subscription_id
      resource_group      = var.resource_group
      gallery_name        = var.gallery
      image_name          = "runner-ubuntu-2404-arm64"
      image_version       = var.image_version
      replication_regions = var.replication_regions
    }
  }

  provisioner "shell" {
    inline = ["sudo cloud-init status --wait || [ $? -eq 2 ]"] // 2: it is done, and had something to complain about
  }

  // What a VM would install at its first boot is installed here by the same script, so that a VM finds it there.
  provisioner "file" {
    source      = "${path.root}/../../runnerpool/vm/bootstrap.sh"
    destination = "/tmp/bootstrap.sh"
  }

  provisioner "shell" {
    script          = "${path.root}/provision.sh"
    execute_command = "{{ .Vars }} sudo -E bash '{{ .Path }}'"
    environment_vars = [
      "RUNNER_VERSION=${var.runner_version}",
      "RUNNER_URL=${local.releases}/v${var.runner_version}/actions-runner-linux-${source.name}-${var.runner_version}.tar.gz",
      "RUNNER_SHA256=${var.runner_sha256[source.name]}",
    ]
  }

  // Last: it takes away the user as whom Packer works.
  provisioner "shell" {
    script          = "${path.root}/clean.sh"
    execute_command = "{{ .Vars }} sudo -E bash '{{ .Path }}'"
    skip_clean      = true
  }
}
